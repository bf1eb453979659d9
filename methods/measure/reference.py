"""References: what samples are scored against, and the identity that says which scores may be compared."""

import hashlib
import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from methods.data import Images, Mixture
from methods.data.edges import edges
from methods.measure.features import digest, extract
from methods.measure.plane import (
    median_distance,
    mmd,
    mode_coverage,
    off_manifold,
    sliced_wasserstein2,
    wasserstein2,
)
from methods.measure.quality import (
    bias_floor,
    class_histogram,
    conditional_accuracy,
    frechet,
    heavier,
    kid,
    manifold,
    median_ink,
    nearest_median,
    nearest_training,
    paired_fidelity,
)
from methods.nets.classifier import Classifier

REFERENCE_SIZE = 5_000

UNITS = {
    "fd": "squared feature distance",
    "kid": "squared kernel mean discrepancy",
    "accuracy": "fraction of samples",
    "fidelity": "RMS error (pixels in [-1, 1]; 2-D: coordinates)",
    "precision": "fraction of samples",
    "recall": "fraction of reference images",
    "density": "relative to the reference's own",
    "coverage": "fraction of reference images (2-D: of modes)",
    "histogram": "total variation",
    "nearest": "ratio of distances",
    "fd_new": "squared feature distance",
    "fd_old": "squared feature distance",
    "preferred": "fraction of samples",
    "edges": "RMS error of the slope",
    "w2": "distance in the plane",
    "sliced_w2": "distance in the plane",
    "mmd": "squared kernel mean discrepancy",
    "off_manifold": "fraction of samples",
}


@dataclass(frozen=True)
class Identity:
    """What a quality number belongs to; numbers of different identities are not compared."""

    data: str
    size: int
    extractor: str
    n: int

    def require(self, other: "Identity") -> None:
        """Raise ValueError, naming what differs, unless `other` is the same identity."""
        if self != other:
            mine, theirs = vars(self), vars(other)
            differ = [f"{key} ({mine[key]} and {theirs[key]})" for key in mine if mine[key] != theirs[key]]
            raise ValueError(f"These numbers cannot be compared: they differ in {', '.join(differ)}.")


@dataclass(frozen=True)
class Scores:
    """The metrics of one block, and the standard errors of those that a U-statistic gives within the block."""

    values: dict[str, float]
    errors: dict[str, float]


@dataclass(frozen=True)
class Floor:
    """What real held-out data score: the best a sampler can hope for.

    Held-out sets are smaller than n, so FD is compared as the excess over the bias at each number of
    samples: `excess` here, and `fd - bias_at_n` for n samples.
    """

    identity: Identity
    scores: dict[str, float]
    bias: float
    bias_at_n: float

    @property
    def excess(self) -> float:
        return self.scores["fd"] - self.bias


@dataclass(frozen=True, eq=False)
class Reference:
    """Training images and their features, ready to score samples; build it with `Reference.of`."""

    identity: Identity
    net: Classifier
    features: Float[Tensor, "m d"]
    labels: Int[Tensor, "m"]
    predicted: Int[Tensor, "m"]
    training: Float[Tensor, "t c h w"]
    held_out_median: float
    withheld: tuple[int, ...]
    median_ink: Float[Tensor, "k"]

    @classmethod
    def of(cls, images: Images, net: Classifier, n: int, size: int = REFERENCE_SIZE) -> "Reference":
        """For scoring n samples: `size` training images, or all there are, chosen whatever their order."""
        rows = _selection(images.train, size)
        features, predicted = extract(net, images.train[rows])
        return cls(
            identity=Identity(images.source, len(rows), digest(net), n),
            net=net,
            features=features,
            labels=images.train_labels[rows],
            predicted=predicted,
            training=images.train,
            held_out_median=nearest_median(images.held_out, images.train),
            withheld=images.withheld,
            median_ink=median_ink(images.train, images.train_labels, images.classes if images.withheld else 0),
        )

    def score(
        self,
        samples: Float[Tensor, "n c h w"],
        labels: Int[Tensor, "n"],
        same_noise: Float[Tensor, "n c h w"] | None = None,
        wanted: Float[Tensor, "n c h w"] | None = None,
    ) -> Scores:
        """All metrics of an image bed; `same_noise` (many-step end points from the same noise) adds fidelity.

        `wanted` are the images whose outlines a control may have been given.

        KID is taken of features divided by the reference's root mean square, so that its kernel's constant
        matters as much as its product; balanced classes bias it slightly below zero.
        """
        _require_count(samples, self.identity.n)
        features, predicted = extract(self.net, samples)
        scale = self.features.square().mean().sqrt()
        kernel = kid(features / scale, self.features / scale)
        scores = {
            "fd": frechet(features, self.features),
            "kid": kernel.value,
            "accuracy": conditional_accuracy(predicted, labels),
            **manifold(self.features, features),
            "histogram": class_histogram(predicted, self.predicted, self.net.classes),
            "nearest": nearest_training(samples, self.training, self.held_out_median),
        }
        if self.withheld:
            scores |= self.adapted(samples, features, labels, wanted)
        if same_noise is not None:
            scores["fidelity"] = paired_fidelity(samples, same_noise)
        return Scores(scores, {"kid": math.sqrt(kernel.variance)})

    def adapted(
        self, samples: Float[Tensor, "n c h w"], features: Float[Tensor, "n d"], labels: Int[Tensor, "n"],
        wanted: Float[Tensor, "n c h w"] | None,
    ) -> dict[str, float]:  # fmt: skip
        """What adapting a model gained and cost: FD where it learns, FD where it may forget, strokes and outlines."""
        withheld = torch.tensor(self.withheld)
        new, of_new = torch.isin(labels, withheld), torch.isin(self.labels, withheld)
        return {
            "fd_new": frechet(features[new], self.features[of_new]),
            "fd_old": frechet(features[~new], self.features[~of_new]),
            "preferred": heavier(samples[~new], labels[~new], self.median_ink),
            **({} if wanted is None else {"edges": paired_fidelity(edges(samples[~new]), edges(wanted[~new]))}),
        }


@dataclass(frozen=True, eq=False)
class MixtureReference:
    """A mixture and one fixed draw of it, ready to score samples in the plane."""

    identity: Identity
    mixture: Mixture
    draw: Float[Tensor, "n 2"]
    bandwidth: float

    @classmethod
    def of(cls, mixture: Mixture, n: int, seed: int = 0) -> "MixtureReference":
        """The reference for scoring n samples: n draws of the mixture with the given seed."""
        draw = mixture.sample(n, torch.Generator().manual_seed(seed))
        identity = Identity(f"{mixture.name}, seed {seed}", n, "coordinates", n)
        return cls(identity, mixture, draw, median_distance(draw))

    def score(
        self,
        samples: Float[Tensor, "n 2"],
        labels: Tensor | None = None,
        same_noise: Float[Tensor, "n 2"] | None = None,
    ) -> Scores:
        """All metrics of a planar bed; labels mean nothing here. `same_noise` adds fidelity."""
        _require_count(samples, self.identity.n)
        kernel = mmd(samples, self.draw, self.bandwidth)
        scores = {
            "w2": wasserstein2(samples, self.draw),
            "sliced_w2": sliced_wasserstein2(samples, self.draw),
            "mmd": kernel.value,
            "coverage": mode_coverage(samples, self.mixture),
            "off_manifold": off_manifold(samples, self.mixture),
        }
        if same_noise is not None:
            scores["fidelity"] = paired_fidelity(samples, same_noise)
        return Scores(scores, {"mmd": math.sqrt(kernel.variance)})


def _selection(images: Float[Tensor, "t c h w"], size: int) -> Int[Tensor, "m"]:
    """Rows of the `size` images that come first when sorted by their sha256."""
    keys = [hashlib.sha256(image.numpy().tobytes()).digest() for image in images]
    return torch.tensor(sorted(range(len(keys)), key=keys.__getitem__)[:size])


def _require_count(samples: Tensor, n: int) -> None:
    if len(samples) != n:
        raise ValueError(f"This reference scores {n} samples and was given {len(samples)}.")


def floor(images: Images, reference: Reference) -> Floor:
    """Score the held-out images against the reference, at their own number."""
    count = len(images.held_out)
    own = replace(reference, identity=replace(reference.identity, n=count))
    generator = torch.Generator().manual_seed(0)
    return Floor(
        identity=own.identity,
        scores=own.score(images.held_out, images.held_out_labels).values,
        bias=bias_floor(reference.features, reference.labels, count, generator),
        bias_at_n=bias_floor(reference.features, reference.labels, reference.identity.n, generator),
    )
