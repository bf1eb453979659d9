"""What distillations on pairs share: the phase that draws a teacher's pairs and has a student learn from them."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from methods.core.calibration import Phase, Report
from methods.core.data import TrainingSet
from methods.core.learning import optimise
from methods.core.models import Model
from methods.core.objective import Objective
from methods.core.recipe import Recipe
from methods.inference._distillation import PAIRED, affordable, teacher_and_student, teacher_pairs
from methods.inference.ode_solver.ddim import DDIM


@dataclass(frozen=True)
class FromPairs(Phase):
    """Draw pairs from the model in `teacher_steps` steps of DDIM, then train a copy of it on them.

    All for `fraction` of the base training, a third of it for the pairs.
    """

    teacher_steps: int
    fraction: float
    heeds: ClassVar[tuple[str, ...]] = ("grid",)
    makes: ClassVar[str]
    """What the student is called while it learns."""

    @abstractmethod
    def objective(self, recipe: Recipe) -> Objective:
        """What the student learns from rows that are pairs of noise and end point."""

    def __call__(self, recipe: Recipe, model: Model, data: TrainingSet, seed: int, report: Report) -> int:
        pairs, labels, drawing = teacher_pairs(
            recipe, model, data, DDIM(), self.teacher_steps, PAIRED * self.fraction, seed
        )
        fit, training = affordable(recipe, (1 - PAIRED) * self.fraction, updates=1)
        teacher, student = teacher_and_student(recipe, model)
        model.net = optimise(student, teacher, self.objective(recipe), pairs, labels, fit, seed, report, self.makes)
        return drawing + training
