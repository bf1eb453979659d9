"""Phases that read only some of what is decided about sampling: one training serves every recipe that agrees on it."""

from typing import Any, ClassVar

from methods.core.calibration import Phase
from methods.core.recipe import Recipe

SAMPLING = ("sampler", "grid", "steps")
"""How samples will be drawn, which a phase may need to know: it distils for a number of steps, or on a grid."""


class Heeding(Phase):
    """A phase that says what it reads of how samples will be drawn."""

    heeds: ClassVar[tuple[str, ...]]
    """Of SAMPLING."""


def heeded(recipe: Recipe) -> list[Any]:
    """What of SAMPLING the phases of a recipe may depend on; all of it, unless each of them says otherwise."""
    read = {slot for phase in recipe.phases for slot in (phase.heeds if isinstance(phase, Heeding) else SAMPLING)}
    return [getattr(recipe, slot) for slot in SAMPLING if slot in read]
