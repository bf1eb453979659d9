"""Joins noise and images of a batch along their optimal transport plan, so that paths cross less and flows straighten.

Where straight paths cross, the velocity is an average and the flow bends. Optimal pairs for the squared distance do not
cross inside a batch, and as the batch grows the flow they teach becomes the dynamic optimal transport itself.

Source: Tong et al. 2023 "Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport"
(2302.00482), OT-CFM; squared Euclidean cost and exact plan as `OTPlanSampler` of the official code.
`immiscible_diffusion` assigns by the distance itself, on a diffusion path: its pairs may cross, and promise no straight
flow.
Limits: the plan of two batches of equal size is a permutation; every pair of it is taken once, where the official code
draws pairs with replacement. sigma = 0. Labels take no part in the plan.
Cost: one assignment of batch x batch per training step.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from methods.core.activation import count
from methods.core.objective import Coupling, Independent
from methods.core.recipe import Method, edit
from methods.training.flow.flow_matching import FlowVelocity, StraightPath


def optimal_plan(x0: Float[Tensor, "b *s"], eps: Float[Tensor, "b *s"]) -> Int[Tensor, "b"]:
    """The permutation pi that minimises sum_i || x_i - eps_pi(i) ||^2."""
    cost = torch.cdist(x0.flatten(1).double(), eps.flatten(1).double()).square()
    _, assigned = linear_sum_assignment(cost.cpu().numpy())
    return torch.from_numpy(assigned).to(eps.device)


@dataclass(frozen=True)
class OptimalTransport(Coupling):
    """Pairs of the optimal plan between the images of a batch and as many fresh noises."""

    def __call__(self, x0: Float[Tensor, "b *s"], rng: torch.Generator) -> Float[Tensor, "b *s"]:
        eps = Independent()(x0, rng)
        plan = optimal_plan(x0, eps)
        count("pairs_transported", int((plan != torch.arange(len(plan), device=plan.device)).sum()))
        return eps[plan]


def ot_cfm() -> Method:
    """Couple noise and images by optimal transport within each training batch."""
    return edit(needs={"process": StraightPath, "parameterization": FlowVelocity}, coupling=OptimalTransport())
