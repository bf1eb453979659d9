"""PriorGrad: the loss in normalised space is the paper's, and samples start from their class."""

from pathlib import Path

import torch
from small import BASE, CLASSES, SEEDS, SHAPE, images, method, walk

from methods.core import models, run
from methods.training.noise_process.data_dependent_prior import ByClass


def fitted() -> ByClass:
    codec = ByClass(SHAPE, CLASSES, floor=0.1)
    data = images()
    codec.fit(data.images, data.labels, 1, torch.Generator(), lambda *_: None)
    return codec


def test_statistics_are_those_of_each_class_with_a_floor() -> None:
    codec, data = fitted(), images()
    for label in range(CLASSES):
        own = data.images[data.labels == label]
        assert torch.allclose(codec.mean[label], own.mean(0))
        assert torch.allclose(codec.deviation[label], own.std(0, correction=0).clamp(min=0.1))
    flat = ByClass(SHAPE, CLASSES, floor=0.1)
    flat.fit(torch.zeros(6, *SHAPE), torch.arange(6) % CLASSES, 1, torch.Generator(), lambda *_: None)
    assert torch.equal(flat.deviation, torch.full_like(flat.deviation, 0.1))


def test_decoding_undoes_encoding_and_knows_the_class() -> None:
    codec, data = fitted(), images()
    z = codec.encode(data.images, data.labels)
    assert torch.allclose(codec.decode(z, data.labels), data.images, atol=1e-5)
    assert not torch.allclose(codec.decode(z, (data.labels + 1) % CLASSES), data.images, atol=1e-2)


def test_the_usual_loss_of_normalised_images_is_that_of_the_paper() -> None:
    """x_t - mu = alpha (x_0 - mu) + sigma eps with eps of the class's covariance, and errors in its units."""
    codec, data, process = fitted(), images(), BASE.process
    rng, t = torch.Generator().manual_seed(0), torch.tensor(0.4, dtype=torch.float64)
    z, answer = torch.randn(data.images.shape, generator=rng), torch.randn(data.images.shape, generator=rng)
    mean, deviation = codec.statistics(data.labels, data.images)
    ours = process.diffuse(codec.encode(data.images, data.labels), z, t)
    eps = deviation * z  # of covariance Sigma
    theirs = process.alpha(t) * (data.images - mean) + process.sigma(t) * eps
    assert torch.allclose(deviation * ours, theirs.float(), atol=1e-5)
    paper = ((eps - deviation * answer) ** 2 / deviation**2).mean()
    assert torch.allclose(paper, (z - answer).square().mean(), rtol=1e-4)


def test_samples_are_of_their_class_before_anything_is_learned() -> None:
    """A network that answers nothing leaves noise of each class's mean and variance."""
    recipe = method("data_dependent_prior")(BASE)
    model, _ = run.train(recipe, images(), 0)
    labels = torch.arange(CLASSES).repeat_interleave(400)
    drawn = model.codec.decode(torch.randn(len(labels), *SHAPE, generator=torch.Generator().manual_seed(0)), labels)
    for label in range(CLASSES):
        own = images().images[images().labels == label]
        assert torch.allclose(drawn[labels == label].mean(0), own.mean(0), atol=0.2)
    first, again, counters = walk(recipe)
    assert first.shape == (len(SEEDS), *SHAPE) and torch.equal(first, again)
    assert counters["started_from_their_class"] > 0


def test_statistics_travel_with_the_weights(tmp_path: Path) -> None:
    recipe = method("data_dependent_prior")(BASE)
    model, _ = run.train(recipe, images(), 0)
    models.save(model, tmp_path / "m.safetensors", {})
    loaded = models.load(recipe, tmp_path / "m.safetensors", SHAPE, CLASSES, shipped=False)
    assert isinstance(loaded.codec, ByClass) and torch.equal(loaded.codec.mean, model.codec.get_buffer("mean"))
