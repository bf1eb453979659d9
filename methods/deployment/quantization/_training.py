"""Training quantized layers to answer, rounded, as the network answered before."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from methods.core.calibration import Report
from methods.deployment.quantization._calibration import Asked
from methods.deployment.quantization._layers import Quantized, Trainable, put


def distil(
    network: nn.Module, pool: Asked, groups: list[dict[str, Any]], iterations: int, batch: int, rng: torch.Generator,
    report: Report,
) -> int:  # fmt: skip
    """Train a network to answer what was answered, by Adam with a linear decay; returns how many rows it saw.

    `groups` are what is trained, each with its `lr`.
    """
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / iterations)
    for i in range(iterations):
        rows = pool.rows(torch.randint(len(pool.x), (batch,), generator=rng).to(pool.x.device))
        loss = (network(rows.x, rows.u, rows.labels) - rows.answer).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if (i + 1) % 50 == 0 or i + 1 == iterations:
            report("quantized network", i + 1, iterations, loss.item())
    return iterations * batch


T = TypeVar("T", bound=Trainable)


def trained(network: nn.Module, make: Callable[[str, Quantized], T]) -> dict[str, T]:
    """Put what trains in the place of every quantized layer, by path."""
    layers = {path: part for path, part in network.named_modules() if isinstance(part, Quantized)}
    training = {path: make(path, layer) for path, layer in layers.items()}
    for path, part in training.items():
        put(network, path, part)
    return training


def settle(network: nn.Module, training: Mapping[str, Trainable]) -> None:
    """Put the quantized layers back, with what was learned."""
    for path, part in training.items():
        put(network, path, part.settle())
