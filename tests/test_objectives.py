"""The formulas of the training objectives and couplings, against closed forms and the numbers of their papers."""

from itertools import permutations

import ot
import torch
from small import recipe_of

from methods.training.flow.ot_cfm import OptimalTransport, optimal_plan
from methods.training.noise_process.immiscible_diffusion import NearestAssignment


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Optimal transport ----------------------------------------------------------------------------------------------------


def test_the_plan_is_the_optimal_one_for_the_squared_distance() -> None:
    """All permutations of six, and POT's exact plan, which the official code draws from."""
    x0, eps = torch.randn(6, 1, 2, 2, generator=seeded()), torch.randn(6, 1, 2, 2, generator=seeded(1))
    plan = optimal_plan(x0, eps).tolist()
    costs = {p: (x0 - eps[list(p)]).square().sum().item() for p in permutations(range(6))}
    assert costs[tuple(plan)] == min(costs.values())
    even = torch.full((6,), 1 / 6, dtype=torch.float64).numpy()
    cost = torch.cdist(x0.flatten(1).double(), eps.flatten(1).double()) ** 2
    assert torch.from_numpy(ot.emd(even, even, cost.numpy())).argmax(1).tolist() == plan


def test_squared_distances_pair_otherwise_than_distances() -> None:
    """Where the two differ, the squared distance shares a detour out; `immiscible_diffusion` leaves it to one pair."""
    x0, eps = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.1, 1.0]])
    assert optimal_plan(x0, eps).tolist() == [0, 1]
    distance = torch.cdist(x0, eps)
    assert distance[0, 1] + distance[1, 0] < distance[0, 0] + distance[1, 1]


def test_paths_on_a_line_do_not_cross() -> None:
    """In one dimension the optimal plan is the monotone one: the order of images is the order of their noise."""
    x0 = torch.randn(50, 1, generator=seeded())
    eps = OptimalTransport()(x0, seeded(1))
    assert torch.equal(x0.argsort(dim=0), eps.argsort(dim=0))
    assert torch.equal(eps.sort(dim=0).values, torch.randn(50, 1, generator=seeded(1)).sort(dim=0).values)


def test_optimal_pairs_are_nearer_in_the_square_than_any_others() -> None:
    x0 = torch.randn(64, 1, 8, 8, generator=seeded())
    squared = [(c(x0, seeded(1)) - x0).square().sum() for c in (OptimalTransport(), NearestAssignment())]
    independent = (torch.randn(x0.shape, generator=seeded(1)) - x0).square().sum()
    assert squared[0] <= squared[1] < independent
    assert recipe_of("flow_matching", "ot_cfm").coupling == OptimalTransport()
