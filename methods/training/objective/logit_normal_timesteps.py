"""Draws training times from a logit-normal: more of the middle, where the velocity is hardest to predict.

On the straight path lam is minus the logit of t, so a logit-normal t is simply a normal lam, and holds for any process.

Source: Esser et al. 2024 "Scaling Rectified Flow Transformers" (2403.03206), eq. 19 (density) and table 1 (m = 0, s =
1).
Limits: defined on the straight path of `flow_matching`; on another process the same noise levels are drawn.
"""

from methods.core.objective import NormalLam
from methods.core.recipe import Method, edit


def logit_normal_timesteps(mean: float = 0.0, std: float = 1.0) -> Method:
    """Draw logit(t) ~ N(mean, std^2)."""
    return edit(times=NormalLam(-mean, std))
