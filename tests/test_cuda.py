"""On a CUDA device: every technique trains, ships and samples there, and samples what it samples on the CPU."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small import BASE, CLASSES, IDS, SEEDS, SHAPE, TECHNIQUES, images, recipe_of
from torch import Tensor

from methods.core import models, run
from methods.core.denoiser import Mixture
from methods.core.errors import Unavailable
from methods.core.recipe import Recipe
from methods.data import Images, load
from methods.data import Mixture as Plane
from methods.measure.features import train_features

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("less_work", "exact_products")]

COARSE = 0.05
"""How far two devices may be apart on average, in images from -1 to 1, where rounding to few bits or a choice between
close values may fall the other way."""
CLOSE = 1e-3


@pytest.fixture
def exact_products() -> Iterator[None]:
    """Convolutions in float32 throughout, not in TensorFloat-32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def drawn(recipe: Recipe, path: Path) -> Tensor:
    """Samples of a model as it ships, on the device of today."""
    model = models.load(recipe, path, SHAPE, CLASSES, shipped=True)
    assert next(iter(model.state_dict().values())).device.type == models.device().type
    deployed = run.deploy(recipe, model)
    return run.generate(recipe, deployed, torch.tensor(SEEDS) % CLASSES, SEEDS, images().images[: len(SEEDS)])


@pytest.mark.parametrize("id", IDS)
def test_a_technique_samples_there_what_it_samples_here(
    id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, path = recipe_of(*TECHNIQUES[id].default.methods), tmp_path / "model.safetensors"
    try:
        model, _ = run.train(recipe, images(), 0)
        model, _, shapes = run.compress(recipe, model, images(), 0)
        models.save(model, path, {}, shapes)
        there = drawn(recipe, path)
    except Unavailable as error:
        pytest.skip(str(error))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    apart = (there - drawn(recipe, path)).abs().mean().item()
    assert there.isfinite().all()
    assert apart < (COARSE if TECHNIQUES[id].family == "quantization" else CLOSE)


def test_the_exact_denoiser_samples_there_what_it_samples_here(monkeypatch: pytest.MonkeyPatch) -> None:
    plane = load("mixture")
    assert isinstance(plane, Plane)

    def points() -> Tensor:
        exact = Mixture(plane.means, plane.stds, plane.weights, BASE.process)
        deployed = run.deploy_exact(BASE, exact, plane.sample(64, torch.Generator().manual_seed(0)))
        return run.generate(BASE, deployed, torch.zeros(64, dtype=torch.long), range(64))

    there = points()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert torch.allclose(there, points(), atol=1e-4)


def test_the_feature_network_learns_there() -> None:
    digits = load("digits")
    assert isinstance(digits, Images)
    _, accuracy = train_features(digits, epochs=10, device="cuda")
    assert accuracy > 0.9
