"""Every technique goes with every other, or one of the two is refused by name."""

from collections.abc import Iterator
from dataclasses import replace

import jaxtyping
import pytest
import torch
from small import BASE, IDS, SEEDS, SHAPE, method, standing, walk

from methods.core.errors import Conflict, NothingMatched
from methods.core.recipe import Method, compose
from methods.deployment.runtime._shared import Handed

pytestmark = pytest.mark.usefixtures("less_work")

BRIEF = {
    "gotta_go_fast": {"tolerance": 5.0}, "efficientdm": {"buckets": 2}, "svdquant": {"strengths": 1},
    "sfd": {"substeps": 2}, "dmd": {"teacher_steps": 2}, "kd_denoising_student": {"teacher_steps": 2},
    "reflow": {"teacher_steps": 2},
}  # fmt: skip
"""Parameters that make a technique quick, beside those that make it small."""
QUANTIZERS = ("cpu_int8_intel", "efficientdm", "ptq4dm", "q_diffusion", "svdquant", "weight_only_int8_int4")
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
    *(("channels_last", graph, OWN_CHOICE) for graph in ("onnxruntime", "openvino")),
    *((graph, "sdpa_flash", OWN_CHOICE) for graph in ("onnxruntime", "openvino")),
    *((id, "channels_last", "UNet holds no convolution whose weights have another order") for id in QUANTIZERS),
    *((id, to, NO_PART) for id in QUANTIZERS for to in ("onnxruntime", "openvino", "torch_compile")),
    *(("int8_dynamic", graph, NO_PART) for graph in ("onnxruntime", "openvino")),
}
"""Pairs of which one removes all that the other would change, and what the user is told; the set may only shrink."""


@pytest.fixture(autouse=True)
def nothing_but_the_pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PyTorch runs what a runtime was given, and nobody checks shapes: other tests do both for every technique."""
    monkeypatch.setattr(Handed, "forward", lambda handed, *inputs: handed.hidden[0](*inputs))
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def brief(id: str) -> Method:
    return method(id, **BRIEF.get(id, {}))


@pytest.mark.parametrize(
    "id", [pytest.param(id, marks=pytest.mark.xdist_group(f"pairs {i % 2}")) for i, id in enumerate(IDS)]
)
def test_a_technique_refuses_or_goes_with_every_other(id: str) -> None:
    """Each pair once: it conflicts naming both, or trains a little and samples the same finite images twice."""
    for other in IDS[IDS.index(id) + 1 :]:
        try:
            recipe = compose(BASE, *map(brief, dict.fromkeys(standing(id) + standing(other))))
        except Conflict as conflict:
            for side in (id, other):
                assert any(name in str(conflict) for name in standing(side)), conflict
            continue
        try:
            first, again, _ = walk(replace(recipe, steps=4))
        except NothingMatched as nothing:  # one removed what the other wants to change
            assert (id, other, str(nothing)) in NOTHING_LEFT
            continue
        assert first.shape == (len(SEEDS), *SHAPE), other
        assert first.isfinite().all(), other
        assert torch.equal(first, again), other
