"""Every technique at a size that trains and samples in milliseconds."""

from collections import Counter
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from catalog import load
from methods.baseline import baseline
from methods.core import models, run
from methods.core.activation import tallied
from methods.core.data import TrainingSet
from methods.core.errors import Conflict
from methods.core.fit import Fit
from methods.core.identity import training_fingerprint
from methods.core.recipe import Method, Recipe, compose
from methods.nets.unet import UNetConfig

TECHNIQUES = load().techniques
IDS = list(TECHNIQUES)
BASE = baseline(UNetConfig(8), Fit(2, batch=8, learning_rate=1e-2, warmup=1, ema=0.5))
SHAPE, CLASSES, SEEDS = (1, 8, 8), 3, [0, 1, 2]
TINY = {
    "progressive_distillation": {"steps": 4, "start_steps": 8, "fraction": 0.5},
    "diff_pruning": {"fraction": 0.5},
    "loss_aware_timestep_sampling": {"levels": 2, "history": 1},
    "ema_weights": {"decay": 0.05},
}
"""Parameters that make a technique's own training a single iteration."""


def method(id: str, **params: float) -> Method:
    return replace(TECHNIQUES[id].call(TINY.get(id, {}) | params), name=id)


def recipe_of(*ids: str) -> Recipe:
    return compose(BASE, *map(method, ids))


@cache
def standing(id: str) -> tuple[str, ...]:
    """A technique, and what it builds on if the baseline does not meet its needs."""
    try:
        recipe_of(id)
    except Conflict:
        return *TECHNIQUES[id].builds_on, id
    return (id,)


@cache
def images() -> TrainingSet:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(24, *SHAPE, generator=rng).clamp(-1, 1)
    return TrainingSet(x, torch.arange(24) % CLASSES, CLASSES)


LATER = ("starter.", "parts.")
"""What of a model base training does not fit."""
TRAINED: dict[str, tuple[dict[str, Tensor], Counter[str]]] = {}
"""The state and the counters of every base training so far, by its fingerprint."""


def trained(recipe: Recipe) -> tuple[models.Model, Counter[str]]:
    """A model of its own, trained once for all recipes with the same training."""
    fingerprint = training_fingerprint(recipe)
    if fingerprint not in TRAINED:
        with tallied() as counters:
            model, _ = run.train(recipe, images(), 0)
        weights = {n: t for n, t in model.state_dict().items() if not n.startswith(LATER)}
        TRAINED[fingerprint] = weights, counters
    model = models.build(recipe, SHAPE, CLASSES, 0)
    missing, unexpected = model.load_state_dict(TRAINED[fingerprint][0], strict=False)
    assert not unexpected and all(name.startswith(LATER) for name in missing)
    return model.eval(), TRAINED[fingerprint][1]


def walk(recipe: Recipe) -> tuple[Tensor, Tensor, Counter[str]]:
    """The four steps of a cell but the last, sampled twice; and what was counted on the way."""
    model, total = trained(recipe)
    with tallied() as counters:
        model, *_ = run.compress(recipe, model, images(), 0)
        deployed = run.deploy(recipe, model)
        first = run.generate(recipe, deployed, torch.tensor(SEEDS) % CLASSES, SEEDS, images().images[: len(SEEDS)])
    again = run.generate(recipe, deployed, torch.tensor(SEEDS) % CLASSES, SEEDS, images().images[: len(SEEDS)])
    return first, again, total + counters
