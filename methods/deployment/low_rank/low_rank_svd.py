"""Replaces every weight matrix by the product of two thin ones, the best that a share of its multiplications allows.

What a layer answers, W x, needs far fewer directions than it has channels. The best product of rank r is U U^T W, with
U the first r principal directions of the answers: no other loses less (Eckart and Young). A convolution becomes one to
r channels, and one of a single pixel back. Without inputs to listen to, the directions are those of the weights.

Source: Roy, Biswas, Roy 2025 "SlimDiff" (2509.21498), training-free truncation of W C^{1/2}, C = E[x x^T] over noise
levels; with the directions read off the answers, of second moment W C W^T, after Zhang et al. 2015 (1505.06798).
Limits: SlimDiff factors queries with keys and values with outputs, selects rows in feed-forward parts, and deals out
ranks by influence under one budget; here each layer but the first and the last keeps the same share of its own. The
mean of the answers is not taken off before.
Cost: two batches of samples, and four batches of evaluations.
"""

from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from methods.core.activation import count
from methods.core.calibration import Calibrated, Report
from methods.core.data import TrainingSet
from methods.core.errors import NothingMatched
from methods.core.models import Model
from methods.core.recipe import Method, Recipe, edit
from methods.core.surgery import Stage
from methods.deployment.quantization._calibration import Asked, asked_while_sampling
from methods.deployment.quantization._inputs import channels_last
from methods.deployment.quantization._layers import Layer, put


class Product(nn.Sequential):
    """A layer as one to fewer channels, and one back."""

    def __init__(self, layer: Layer, rank: int) -> None:
        if isinstance(layer, nn.Linear):
            down, up = nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features)
        else:
            place = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
            down = nn.Conv2d(layer.in_channels, rank, layer.kernel_size, **place, bias=False)  # pyright: ignore
            up = nn.Conv2d(rank, layer.out_channels, 1)
        super().__init__(down, up)
        self.rank, self.out_channels = rank, len(layer.weight)
        up.bias = layer.bias  # pyright: ignore[reportAttributeAccessIssue]
        u, _, _ = torch.linalg.svd(layer.weight.detach().double().flatten(1), full_matrices=False)
        self.project(layer.weight, u[:, :rank])

    @torch.no_grad()
    def project(self, weight: Float[Tensor, "o i *k"], basis: Float[Tensor, "o r"]) -> None:
        """Become U U^T W, for orthonormal columns U."""
        down = (basis.T @ weight.double().flatten(1)).reshape(-1, *weight.shape[1:])
        up = basis.reshape(*basis.shape, *[1] * (weight.ndim - 2))
        self[0].weight, self[1].weight = (nn.Parameter(part.to(weight).contiguous()) for part in (down, up))


@torch.no_grad()
def answers(network: nn.Module, paths: list[str], asked: Asked, batch: int) -> dict[str, Float[Tensor, "o o"]]:
    """The sums of y y^T over all that layers answer to these rows, before their bias is added."""
    sums: dict[str, Tensor] = {}

    def note(path: str, layer: nn.Module, given: tuple[Tensor, ...], answer: Tensor) -> None:
        y = channels_last(answer).flatten(0, -2).double()
        y = y if layer.bias is None else y - layer.bias  # pyright: ignore[reportOperatorIssue]
        sums[path] = y.T @ y + sums.get(path, 0)

    hooks = [network.get_submodule(path).register_forward_hook(partial(note, path)) for path in paths]
    for rows in torch.arange(len(asked.x), device=asked.x.device).split(batch):
        part = asked.rows(rows)
        network(part.x, part.u, part.labels)
    for hook in hooks:
        hook.remove()
    return sums


@dataclass(frozen=True)
class LowRank(Calibrated):
    """Products of a rank that leaves each layer `kept` of its multiplications; of answers if `weighted`."""

    kept: float
    weighted: int
    stage: ClassVar[Stage] = Stage.STRUCTURE
    does: ClassVar[str | None] = "factor the weights"

    def __call__(self, module: nn.Module) -> nn.Module:
        network = deepcopy(module)
        layers = {path: part for path, part in network.named_modules() if isinstance(part, Layer) and path}
        first = next((path for path, layer in layers.items() if isinstance(layer, nn.Conv2d)), next(iter(layers), None))
        for path, layer in layers.items():
            out, into = layer.weight.flatten(1).shape
            outer = path in (first, next(reversed(layers)))
            if not outer and min(out, into) > 1 and getattr(layer, "groups", 1) == 1:
                rank = int(self.kept * out * into / (out + into))
                put(network, path, Product(layer, max(1, min(rank, out, into))))
                count("layers_factored")
        if not any(isinstance(part, Product) for part in network.modules()):
            raise NothingMatched(f"{type(network).__name__} holds no layer to factor")
        return network

    def fit(self, recipe: Recipe, before: nn.Module, model: Model, data: TrainingSet, seed: int, report: Report) -> int:
        if not self.weighted:
            return 0
        pool, rng = asked_while_sampling(recipe, before, model, data, seed), torch.Generator().manual_seed(seed)
        chosen = pool.rows(torch.randint(len(pool.x), (4 * recipe.fit.batch,), generator=rng).to(pool.x.device))
        products = {path: part for path, part in model.net.named_modules() if isinstance(part, Product)}
        for path, gram in answers(before, list(products), chosen, recipe.fit.batch).items():
            _, directions = torch.linalg.eigh(gram)
            products[path].project(before.get_parameter(f"{path}.weight"), directions.flip(1)[:, : products[path].rank])
            count("answers_heard")
        return len(pool.x) + len(chosen.x)


def low_rank_svd(kept: float = 0.65, weighted: int = 1) -> Method:
    """Keep this share of each layer's multiplications, for its answers' least error unless `weighted` is 0."""
    return edit(transforms=LowRank(kept, weighted))
