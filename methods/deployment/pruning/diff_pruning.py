"""Removes the channels whose loss would rise least, judged only at the noise levels that matter, then fine-tunes.

A channel's importance is the first-order change of the loss without it, sum |theta dL/dtheta|, with gradients summed
over noise levels. Nearly pure noise is easy and its gradients only add clutter, so levels are taken from clean to
noisy until the loss falls below a share of its maximum.

Source: Fang, Ma, Wang 2023 "Structural Pruning for Diffusion Models" (2305.10924): Taylor expansion over pruned time
steps; importance and stopping rule as in the official code. Dependencies between layers by torch-pruning (DepGraph,
2301.12900).
Limits: a uniform ratio for all convolutions; the inner channels of attention and conditioning stay.
Cost: one batch of gradients at up to 100 levels, and the fine-tuning, `fraction` of the base training.
"""

from dataclasses import dataclass

import torch
import torch_pruning as tp
from torch import nn

from methods.core.activation import count
from methods.core.calibration import Phase, Report
from methods.core.data import TrainingSet
from methods.core.denoiser import Network
from methods.core.errors import NothingMatched
from methods.core.learning import optimise
from methods.core.models import Model, encode, network
from methods.core.recipe import Method, Recipe, edit
from methods.nets.unet import GROUPS, UNet, UNetConfig

LEVELS = 100


@dataclass(frozen=True)
class PruneAndFinetune(Phase):
    """Remove `ratio` of the channels, then train for `fraction` of the base training."""

    ratio: float
    threshold: float
    fraction: float

    def __call__(self, recipe: Recipe, model: Model, data: TrainingSet, seed: int, report: Report) -> int:
        x0, labels = encode(model, data)
        model.net.requires_grad_(True)
        seen = accumulate(
            network(recipe, model), x0[: recipe.fit.batch], labels[: recipe.fit.batch], self.threshold, seed
        )
        assert isinstance(model.net, UNet)
        prune(model.net, self.ratio, tuple(x0.shape[1:]))
        fit = recipe.fit.scaled(self.fraction)
        student = network(recipe, model)
        model.net = optimise(student, student, recipe.objective, x0, labels, fit, seed, report, "pruned network")
        return seen + fit.iterations * fit.batch


def accumulate(net: Network, x0: torch.Tensor, labels: torch.Tensor, threshold: float, seed: int) -> int:
    """Sum the gradients of the noise levels worth hearing into the parameters; returns how many images were seen."""
    eps = torch.randn(x0.shape, generator=torch.Generator(x0.device).manual_seed(seed), device=x0.device)
    net.net.zero_grad()
    largest = 0.0
    for i in range(1, LEVELS + 1):
        t = torch.tensor(i / LEVELS, dtype=torch.float64)
        x_t = net.process.diffuse(x0, eps, t)
        target = net.parameterization.target(net.process, x0, eps, t)
        loss = (net.predict(x_t, t, labels) - target).square().mean()
        largest = max(largest, loss.item())
        if loss.item() < threshold * largest:
            return i * len(x0)
        loss.backward()
    return LEVELS * len(x0)


def prune(net: UNet, ratio: float, shape: tuple[int, ...]) -> None:
    """Remove the least important output channels of every convolution but the last, in place, with what hangs on them.

    As many go from each group of the group norms, so that what is left still divides by the number of groups. Raises
    NothingMatched if the share is too small for that.
    """
    before = sum(p.numel() for p in net.parameters())
    device = next(net.parameters()).device
    example = (torch.zeros(1, *shape), torch.zeros(1), torch.zeros(1, dtype=torch.long))
    graph = tp.DependencyGraph().build_dependency(net, example_inputs=tuple(part.to(device) for part in example))
    importance = tp.importance.GroupTaylorImportance()
    done: set[nn.Module] = {net.head}
    for layer in [part for part in net.modules() if isinstance(part, nn.Conv2d)]:
        if layer in done:
            continue
        together = graph.get_pruning_group(layer, tp.prune_conv_out_channels, list(range(layer.out_channels)))
        done |= {
            dependency.target.module for dependency, _ in together if dependency.handler == tp.prune_conv_out_channels
        }
        scores = importance(together)
        assert scores is not None, "gradients were accumulated before"
        scores = scores.reshape(GROUPS, -1)
        least = scores.argsort(dim=1)[:, : round(ratio * scores.shape[1])]
        chosen = (least + scores.shape[1] * torch.arange(GROUPS, device=least.device)[:, None]).flatten().tolist()
        graph.get_pruning_group(layer, tp.prune_conv_out_channels, chosen).prune()
    net.zero_grad()
    removed = before - sum(p.numel() for p in net.parameters())
    if removed == 0:
        raise NothingMatched(f"{ratio} of the channels is less than one in each of the {GROUPS} groups of every layer")
    count("parameters_removed", removed)


def diff_pruning(ratio: float = 0.3, threshold: float = 0.05, fraction: float = 0.2) -> Method:
    """Prune `ratio` of the channels; ignore levels with less than `threshold` of the largest loss; then fine-tune."""
    return edit(phases=PruneAndFinetune(ratio, threshold, fraction), needs={"net": UNetConfig})
