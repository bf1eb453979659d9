"""What a process of a group runs in the tests: techniques that need one, each sampled from the same network."""

from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from catalog import load
from methods.baseline import baseline
from methods.core import models, run
from methods.core.activation import tallied
from methods.core.fit import Fit
from methods.core.recipe import Recipe, compose
from methods.deployment.distributed_inference._parts import AcrossProcesses, parts
from methods.nets.unet import UNetConfig

BASE = baseline(UNetConfig(8), Fit(2, batch=8, learning_rate=1e-2, warmup=1, ema=0.5), steps=3)
SHAPE, CLASSES, ROWS = (1, 16, 16), 3, 2


def shaken(net: nn.Module) -> nn.Module:
    """A network none of whose layers is silent, as those that start at zero are."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=rng))
    return net.requires_grad_(False).eval()


CASES: dict[str, tuple[int, str, dict[str, int]]] = {
    "two bands": (2, "distrifusion", {"bands": 2, "warmup": 1}),
    "two naive bands": (2, "distrifusion", {"bands": 2, "exchange": 0}),
    "Ulysses": (2, "xdit_usp", {"ulysses": 2, "ring": 1}),
    "Ring": (2, "xdit_usp", {"ulysses": 1, "ring": 2}),
    "four bands": (4, "distrifusion", {"bands": 4, "warmup": 0}),
    "mesh": (4, "xdit_usp", {"ulysses": 2, "ring": 2}),
}
"""Processes, technique and parameters."""


def recipe_of(id: str, params: dict[str, int], *, alone: bool = False) -> Recipe:
    techniques = load().techniques
    below = [replace(techniques[name].call(given), name=name) for name, given in techniques[id].builds_on.items()]
    return compose(BASE, *below, *([] if alone else [replace(techniques[id].call(params), name=id)]))


def sampled(recipe: Recipe) -> tuple[Tensor, dict[str, int]]:
    """Samples of a shaken network, and what was counted."""
    model = models.build(recipe, SHAPE, CLASSES)
    shaken(model.net)
    with tallied() as counters:
        deployed = run.deploy(recipe, model.eval())
        samples = run.generate(recipe, deployed, torch.arange(ROWS) % CLASSES, range(ROWS))
    deployed.denoiser.reset()
    return samples, dict(counters)


def member(rank: int, world: int, folder: str) -> None:
    """One process of a group."""
    torch.set_num_threads(1)
    file, patience = f"file://{folder}/group", timedelta(seconds=240)
    dist.init_process_group("gloo", init_method=file, rank=rank, world_size=world, timeout=patience)
    assert isinstance(parts(world), AcrossProcesses)
    for name, (needed, id, params) in CASES.items():
        if needed == world:
            torch.save(sampled(recipe_of(id, params)), f"{folder}/{name} {rank}")
    dist.destroy_process_group()
