"""Shapes of averages of weights: of all that a training went through, how much of each moment an average holds.

Source: Karras et al. 2023 "Analyzing and Improving the Training Dynamics of Diffusion Models" (2312.02696), sections
3.1 and 3.2 and appendix C; checked against `training/phema.py` of the official code.
"""

import numpy as np


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
    """What to take of each snapshot for the profile that is closest to the one asked for."""
    wanted = products(times, gammas, np.array([time]), np.array([gamma]))
    return np.linalg.solve(products(times, gammas, times, gammas), wanted)[:, 0]
