"""Every technique goes with every other, in sets that cover all pairs, or one of the two is refused by name."""

import gc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations

import jaxtyping
import pytest
import torch
from small import BASE, IDS, SEEDS, SHAPE, method, standing, walk

from methods.core.errors import Conflict, NothingMatched
from methods.core.recipe import Method, Recipe, compose
from methods.deployment.runtime._shared import Handed

pytestmark = pytest.mark.usefixtures("less_work")

BRIEF = {
    "gotta_go_fast": {"tolerance": 5.0}, "efficientdm": {"buckets": 2}, "svdquant": {"strengths": 1},
    "sfd": {"substeps": 2}, "dmd": {"teacher_steps": 2}, "kd_denoising_student": {"teacher_steps": 2},
    "reflow": {"teacher_steps": 2}, "xdit_usp": {"ring": 1}, "diffusion_dpo": {"steps": 2},
    "adm_unet": {"blocks": 1, "width": 8, "head": 8, "attended": 0},
    "simple_diffusion": {"deepest": 1, "width": 8}, "dit": {"depth": 2}, "u_vit": {"pairs": 1},
    "linear_attention_dit": {"depth": 2}, "maskdit": {"depth": 2}, "deferred_masking": {"depth": 2, "mixer": 1},
    "denoising_task_routing": {"depth": 2}, "timestep_early_exit": {"depth": 4},
}  # fmt: skip
"""Parameters that make a technique quick, beside those that make it small."""
QUANTIZERS = (
    "cpu_int8_intel", "early_stage_low_precision", "efficientdm", "ptq4dm", "ptqd", "q_diffusion", "svdquant",
    "weight_only_int8_int4",
)  # fmt: skip
NO_PART = "UNet holds no part of plain layers and plain weights to hand over"
OWN_CHOICE = "An exported graph chooses layouts and kernels itself, and would drop those chosen here"
NOTHING_LEFT = {
    ("tome_sd", "bk_sdm", "UNet holds no self-attention"),
    (
        "guided_distillation",
        "t_stitch",
        "There is no smaller network of one that is told more than a noise level and a class",
    ),
    ("bk_sdm", "sdpa_flash", "UNet holds no self-attention"),
    ("linear_attention_dit", "sdpa_flash", "LinearDiT holds no self-attention"),
    *(("channels_last", graph, OWN_CHOICE) for graph in ("onnxruntime", "openvino")),
    *((graph, "sdpa_flash", OWN_CHOICE) for graph in ("onnxruntime", "openvino")),
    *((id, "channels_last", "UNet holds no convolution whose weights have another order") for id in QUANTIZERS),
    *((id, to, NO_PART) for id in QUANTIZERS for to in ("onnxruntime", "openvino", "torch_compile")),
    *(("int8_dynamic", graph, NO_PART) for graph in ("onnxruntime", "openvino")),
}
"""Pairs of which one removes all that the other would change, and what the user is told; the set may only shrink."""


@pytest.fixture(scope="module", autouse=True)
def few_collections() -> Iterator[None]:
    """What is imported stays anyway, and the collector need not look at it again with every network that is built."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def nothing_but_the_pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PyTorch runs what a runtime was given, and nobody checks shapes: other tests do both for every technique."""
    monkeypatch.setattr(Handed, "forward", lambda handed, *inputs: handed.hidden[0](*inputs))
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@cache
def brief(id: str) -> Method:
    return method(id, **BRIEF.get(id, {}))


def together(ids: Iterable[str]) -> Recipe:
    """The recipe of some techniques with what each builds on, in four steps."""
    every = dict.fromkeys(name for id in ids for name in standing(id))
    return replace(compose(BASE, *map(brief, every)), steps=4)


@cache
def compatible() -> dict[str, set[str]]:
    """By technique: the others that it goes with and leaves something to do."""
    nothing = {frozenset(pair[:2]) for pair in NOTHING_LEFT}
    found: dict[str, set[str]] = {id: set() for id in IDS}
    for a, b in combinations(IDS, 2):
        try:
            together((a, b))
        except Conflict:
            continue
        if {a, b} not in nothing:
            found[a].add(b)
            found[b].add(a)
    return found


@cache
def covering() -> dict[str, list[tuple[str, ...]]]:
    """Sets of techniques that go together, by the first of each, such that every compatible pair is in one of them.

    Greedy: a pair that no set has yet, and then whoever brings most such pairs along. Those that go with nearly all are
    first: what they are in later, with others of their kind, is small.
    """
    known = compatible()
    missing = {id: set(others) for id, others in known.items()}
    sets: dict[str, list[tuple[str, ...]]] = {id: [] for id in IDS}
    for id in sorted(IDS, key=lambda id: len(known[id]), reverse=True):
        while missing[id]:
            chosen, candidates = [id], set(known[id])
            while candidates:
                best = max(candidates, key=lambda c: (sum(c in missing[other] for other in chosen), -IDS.index(c)))
                candidates.discard(best)
                if not any(best in missing[other] for other in chosen):
                    break
                try:
                    together((*chosen, best))
                except Conflict:
                    continue
                chosen.append(best)
                candidates &= known[best]
            for one in chosen:
                missing[one] -= {*chosen}
            sets[id].append(tuple(chosen))
    return sets


def works(ids: Sequence[str]) -> None:
    """Train a little, and sample the same finite images twice."""
    first, again, _ = walk(together(ids))
    assert first.shape == (len(SEEDS), *SHAPE), ids
    assert first.isfinite().all(), ids
    assert torch.equal(first, again), ids


@pytest.mark.parametrize("id", IDS)
def test_a_technique_refuses_or_goes_with_every_other(id: str) -> None:
    """It conflicts naming both, or leaves nothing to do and says so, or some set in which both are works."""
    for other in IDS[IDS.index(id) + 1 :]:
        if other in compatible()[id]:
            continue
        try:
            recipe = together((id, other))
        except Conflict as conflict:
            for side in (id, other):
                assert any(name in str(conflict) for name in standing(side)), conflict
            continue
        with pytest.raises(NothingMatched) as nothing:
            walk(recipe)
        assert (id, other, str(nothing.value)) in NOTHING_LEFT
    for ids in covering()[id]:
        works(ids)


def test_every_pair_is_in_a_set() -> None:
    sets = [set(ids) for each in covering().values() for ids in each]
    for id, others in compatible().items():
        assert all(any({id, other} <= ids for ids in sets) for other in others), id


@pytest.mark.slow
@pytest.mark.parametrize("id", IDS)
def test_a_technique_goes_with_each_other_alone(id: str) -> None:
    """Pair by pair, without a third that could hide what goes wrong between two."""
    for other in IDS[IDS.index(id) + 1 :]:
        if other in compatible()[id]:
            works((id, other))
