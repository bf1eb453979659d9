"""Opens another window of a transformer's channels to each noise level, so that distant levels share fewer of them.

Denoising at different levels is a set of tasks that interfere where they share weights. Neighbouring levels, which are
alike, share nearly all channels, distant ones fewer; the window moves late, so that high noise gets the most of its
own. Masks have no parameters, and what they close passes the block by.

Source: Park et al. 2023 "Denoising Task Routing for Diffusion Models" (2310.07138): window, and where the mask
acts, as in the official code (`models/taskrouting.py`, `models/DiT/models.py`). Network in
`methods/nets/routed_dit.py`.
Limits: the place among the levels is the angle u in which networks here are told the noise level, and not t/T of a
linear schedule. Where a network is told u in another unit, as average velocities are, the window hardly moves. Closed
channels are multiplied by zero, so no compute is saved.
"""

from methods.core.recipe import Method, edit
from methods.nets.routed_dit import RoutedDiTConfig


def denoising_task_routing(
    share: float = 0.8, bend: float = 4.0, patch: int = 2, width: int = 96, depth: int = 4, heads: int = 4
) -> Method:
    """Open `share` (the paper's beta) of the channels, from a place that moves with the power `bend` (its alpha)."""
    return edit(net=RoutedDiTConfig(patch, width, depth, heads, share, bend))
