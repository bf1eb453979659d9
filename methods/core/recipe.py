"""A recipe says everything about a run; a method is an edit of a recipe; composing is merging edits.

Two methods that edit one exclusive slot conflict, and so do a method and whatever replaced what it needs: nobody keeps
a list of who goes with whom.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import nn

from methods.core.calibration import Fitted, Report, Space, Start
from methods.core.denoiser import Guidance
from methods.core.errors import Conflict
from methods.core.objective import Coupling, Denoising, Objective, TimeDensity, Weight
from methods.core.parameterization import Parameterization
from methods.core.process import Process
from methods.core.sampling import Grid, Sampler
from methods.core.surgery import Transform

if TYPE_CHECKING:
    from methods.core.run import Model, TrainingSet

Precision = Literal["float32", "bfloat16"]


class NetConfig(ABC):
    """Describes a network; `build` makes it for data of a shape and a number of classes."""

    @abstractmethod
    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module: ...


@dataclass(frozen=True)
class Fit:
    """How the base network is trained: Adam, a linear warm-up, an exponential moving average of the weights."""

    iterations: int
    batch: int = 128
    learning_rate: float = 2e-3
    warmup: int = 100
    ema: float = 0.995
    precision: Precision = "float32"

    def scaled(self, share: float) -> Fit:
        """A shorter training of the same shape: for a phase, or a quick look."""
        return replace(
            self, iterations=max(1, round(share * self.iterations)), warmup=max(1, round(share * self.warmup))
        )


class Phase(ABC):
    """Something done to the trained network before it ships: distillation, pruning with fine-tuning, ..."""

    @abstractmethod
    def __call__(self, recipe: Recipe, model: Model, data: TrainingSet, seed: int, report: Report) -> int:
        """Change model.net in place or replace it; returns how many images were seen."""


class Calibrated(Transform):
    """A transform that ships and is fitted after it was applied: a quantizer's ranges, the weights of a new part."""

    ships: ClassVar[bool] = True

    @abstractmethod
    def fit(self, recipe: Recipe, before: nn.Module, model: Model, data: TrainingSet, seed: int, report: Report) -> int:
        """Calibrate or train what it has made of the network `before`, which is model.net now, in place.

        Returns how many images were seen.
        """


class Loss(ABC):
    """What base training minimises; its objective is made from the other choices of the recipe."""

    def network(self, net: nn.Module) -> nn.Module:
        """The fresh network as this loss needs it: one that is told more than the noise level has more parameters."""
        return net

    @abstractmethod
    def objective(self, recipe: Recipe) -> Objective: ...


@dataclass(frozen=True)
class Regression(Loss):
    """The denoising loss, with the recipe's times, weight, coupling and label dropout."""

    def objective(self, recipe: Recipe) -> Denoising:
        return Denoising(recipe.times, recipe.weight, recipe.coupling, recipe.label_dropout)


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
    precision: Precision = "float32"
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
    "net", "process", "parameterization", "times", "weight", "coupling", "loss", "label_dropout", "space", "fit",
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
