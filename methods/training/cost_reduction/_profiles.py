"""Shapes of averages of weights: of all that a training went through, how much of each moment an average holds.

Source: Karras et al. 2023 "Analyzing and Improving the Training Dynamics of Diffusion Models" (2312.02696), sections
3.1 and 3.2 and appendix C; checked against `training/phema.py` of the official code.
"""

import numpy as np
import torch
from torch import Tensor, nn

TRACKED = (0.05, 0.10)
"""The lengths that are kept, sigma_rel: standard deviations of their profiles in parts of the training."""


def exponent(length: float) -> float:
    """gamma, for which the profile tau^gamma has this relative standard deviation."""
    t = length**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def products(t: np.ndarray, g: np.ndarray, u: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Inner products of the profiles (g + 1) tau^g / t^(g + 1) on [0, t] and those of h on [0, u], pair by pair."""
    t, g = t[:, None], g[:, None]
    smaller = np.where(t < u, (t / u) ** h, (u / t) ** g)
    return (g + 1) * (h + 1) * smaller / ((g + h + 1) * np.maximum(t, u))


def coefficients(times: np.ndarray, gammas: np.ndarray, time: float, gamma: float) -> np.ndarray:
    """What to take of each snapshot, in all 1, for the profile that is closest to the one asked for."""
    wanted = products(times, gammas, np.array([time]), np.array([gamma]))
    found = np.linalg.solve(products(times, gammas, times, gammas), wanted)[:, 0]
    return found / found.sum()


class Snapshots(nn.Module):
    """The averages as they were at `times`, counted in updates; 0 where nothing was kept yet. Two to each time."""

    times: Tensor

    def __init__(self, net: nn.Module, count: int) -> None:
        super().__init__()
        self.register_buffer("times", torch.zeros(count, dtype=torch.float64))
        for i, p in enumerate(net.parameters()):
            self.register_buffer(f"p{i}", torch.zeros(count, len(TRACKED), *p.shape))

    def of(self, index: int) -> Tensor:
        """The averages [count, 2, ...] of a parameter of the network."""
        return self.get_buffer(f"p{index}")
