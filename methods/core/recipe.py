"""A recipe says everything about a run; a method is an edit of a recipe; composing is merging edits.

Two methods that edit one exclusive slot conflict, and so do a method and whatever replaced what it needs: nobody keeps
a list of who goes with whom.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import combinations
from typing import Any

from torch import nn

from methods.core.average import Average, Exponential
from methods.core.calibration import Fitted, Phase
from methods.core.codec import Space
from methods.core.control import Control, Uncontrolled
from methods.core.denoiser import Guidance
from methods.core.errors import Conflict
from methods.core.fit import Fit, Precision
from methods.core.objective import Coupling, Loss, Objective, Regression, TimeDensity, Weight
from methods.core.parameterization import Parameterization
from methods.core.process import Process
from methods.core.sampling import Grid, Sampler
from methods.core.start import Start
from methods.core.surgery import Transform


class NetConfig(ABC):
    """Describes a network; `build` makes it for data of a shape and a number of classes."""

    @abstractmethod
    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module: ...


@dataclass(frozen=True)
class Recipe:
    """Every choice of a run. `phases` and `transforms` are added to; every other field holds one choice."""

    net: NetConfig
    process: Process
    parameterization: Parameterization
    times: TimeDensity
    weight: Weight
    coupling: Coupling
    space: Space
    start: Start
    guidance: Guidance
    grid: Grid | Fitted
    sampler: Sampler | Fitted
    steps: int
    fit: Fit
    loss: Loss = Regression()
    label_dropout: float = 0.0
    average: Average = Exponential()
    precision: Precision = "float32"
    control: Control = Uncontrolled()
    phases: tuple[Phase, ...] = ()
    transforms: tuple[Transform, ...] = ()

    @property
    def objective(self) -> Objective:
        """What base training minimises."""
        return self.loss.objective(self)

    def kind(self, slot: str) -> type:
        """The class of what takes a slot: a fitted choice counts as what it becomes."""
        choice = getattr(self, slot)
        return choice.becomes if isinstance(choice, Fitted) else type(choice)

    @property
    def fitted(self) -> dict[str, Fitted]:
        """The choices that are fitted to the finished model, by slot, in the order in which they are."""
        return {slot: choice for slot in ("grid", "sampler") if isinstance(choice := getattr(self, slot), Fitted)}


ADDITIVE = ("phases", "transforms")

TRAINING = (
    "net", "process", "parameterization", "times", "weight", "coupling", "loss", "label_dropout", "average", "space",
    "fit",
)  # fmt: skip
"""The fields that base training is given; everything else may change without training again."""


@dataclass(frozen=True)
class Method:
    """An edit of a recipe, the kinds it needs to find in other slots, and the name it answers to in a conflict."""

    edits: Mapping[str, Any]
    needs: Mapping[str, type | tuple[type, ...]] = field(default_factory=dict)
    name: str = "this edit"

    def __call__(self, recipe: Recipe) -> Recipe:
        return compose(recipe, self)


def edit(*, needs: Mapping[str, type | tuple[type, ...]] | None = None, **edits: Any) -> Method:
    """The method that sets these fields; values for `phases` and `transforms` are single items that are added."""
    unknown = edits.keys() - {f.name for f in fields(Recipe)}
    assert not unknown, f"a recipe has no field {unknown}"
    return Method(edits, needs or {})


def compose(base: Recipe, *methods: Method) -> Recipe:
    """The recipe with all edits made, whatever order they come in. Raises Conflict, naming the slot and both sides."""
    merged: dict[str, Any] = {}
    owner: dict[str, str] = {}
    added: dict[str, list[tuple[str, Any]]] = {name: [] for name in ADDITIVE}
    for method in sorted(methods, key=lambda m: m.name):
        for slot, value in method.edits.items():
            if slot in ADDITIVE:
                added[slot].append((method.name, value))
            elif slot in merged:
                raise Conflict(f"{owner[slot]} and {method.name} cannot be combined: both set `{slot}`.")
            else:
                merged[slot], owner[slot] = value, method.name
    for (first, a), (second, b) in combinations(added["transforms"], 2):
        if a.does is not None and a.does == b.does:
            raise Conflict(f"{first} and {second} cannot be combined: both {a.does}.")
    for slot, items in added.items():
        merged[slot] = getattr(base, slot) + tuple(item for _, item in items)
    merged["phases"] = tuple(sorted(merged["phases"], key=lambda phase: not phase.first))
    recipe = replace(base, **merged)
    for method in methods:
        for slot, kinds in method.needs.items():
            kind = recipe.kind(slot)
            if not issubclass(kind, kinds):
                expected = " or ".join(k.__name__ for k in (kinds if isinstance(kinds, tuple) else (kinds,)))
                raise Conflict(
                    f"{method.name} and {owner.get(slot, 'the baseline')} cannot be combined: {method.name} needs a "
                    f"{expected} in `{slot}`, which is {kind.__name__}."
                )
    return recipe
