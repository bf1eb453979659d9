"""How good images are, measured in the features of one frozen classifier.

FD here is **FD-smallnet**: a Frechet distance in at most 64 features, never comparable with FID. Its bias
grows like d^2 / n and swamps small gaps, so numbers are only compared within one `reference.Identity`.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn.functional import adaptive_avg_pool2d

NEIGHBOURS = 5
PIXEL_GRID = 8
FLOOR_DRAWS = 20


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Mean and symmetric square root of the covariance of a cloud, all that a Frechet distance sees of it."""

    mean: Float[Tensor, "d"]
    root: Float[Tensor, "d d"]

    @classmethod
    def of(cls, features: Float[Tensor, "n d"]) -> "Gaussian":
        variance, axes = torch.linalg.eigh(torch.atleast_2d(torch.cov(features.double().T)))
        return cls(features.double().mean(0), (axes * variance.clamp(min=0).sqrt()) @ axes.T)

    def distance(self, other: "Gaussian") -> float:
        """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)); the last trace is the nuclear norm of root1 root2."""
        overlap = torch.linalg.svdvals(self.root @ other.root).sum()
        spread = self.root.square().sum() + other.root.square().sum() - 2 * overlap
        return ((self.mean - other.mean).square().sum() + spread).item()


def frechet(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """Squared Frechet (Wasserstein-2) distance of the Gaussians fitted to two clouds, in double precision.

    Source: Dowson and Landau 1982; as a measure of samples, Heusel et al. 2017, arXiv:1706.08500, eq. 6.
    """
    return Gaussian.of(a).distance(Gaussian.of(b))


def bias_floor(reference: Float[Tensor, "m d"], labels: Int[Tensor, "m"], n: int, generator: Generator) -> float:
    """What `frechet` is expected to give a perfect class-conditional sampler at n samples.

    The mean over 20 resamplings of the reference, with replacement within each class and the classes in the
    reference's own proportions, as labels are requested. Without this stratification the number doubles (on
    digits it then agrees with draws from one Gaussian of the reference's mean and covariance), and real
    held-out data, whose classes are balanced too, would score far below "perfect".
    """
    truth = Gaussian.of(reference)
    members = [(labels == label).nonzero()[:, 0] for label in range(int(labels.max()) + 1)]
    requested = labels.sort().values[torch.arange(n) * len(labels) // n].bincount()
    draws = []
    for _ in range(FLOOR_DRAWS):
        rows = [
            own[torch.randint(len(own), (int(count),), generator=generator)]
            for own, count in zip(members, requested, strict=True)
            if count
        ]
        draws.append(Gaussian.of(reference[torch.cat(rows)]).distance(truth))
    return math.fsum(draws) / FLOOR_DRAWS


@dataclass(frozen=True)
class Discrepancy:
    """An unbiased squared MMD, which may be negative, and the variance of this estimate."""

    value: float
    variance: float


def kid(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Discrepancy:
    """Kernel distance: unbiased squared MMD with the kernel (x.y / d + 1)^3.

    Source: Binkowski et al. 2018, arXiv:1801.01401, Section 4.
    """
    a, b = a.double(), b.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / a.shape[1] + 1) ** 3

    return mmd2(kernel(a, a), kernel(b, b), kernel(a, b))


def mmd2(aa: Float[Tensor, "n n"], bb: Float[Tensor, "m m"], ab: Float[Tensor, "n m"]) -> Discrepancy:
    """U-statistic of the squared MMD (Gretton et al. 2012, eq. 3) with its jackknife-like variance.

    The variance is 4/n Var(g_a) + 4/m Var(g_b), g being each point's own contribution. Where the two
    distributions agree the statistic is degenerate and this is about twice the truth, so intervals are safe.
    """
    n, m = ab.shape
    own_a = (aa.sum(1) - aa.diagonal()) / (n - 1)
    own_b = (bb.sum(1) - bb.diagonal()) / (m - 1)
    value = own_a.mean() + own_b.mean() - 2 * ab.mean()
    variance = 4 / n * (own_a - ab.mean(1)).var() + 4 / m * (own_b - ab.mean(0)).var()
    return Discrepancy(value.item(), variance.item())


def manifold(real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"], k: int = NEIGHBOURS) -> dict[str, float]:
    """precision, recall, density and coverage, all from balls reaching to the k-th nearest neighbour.

    Source: Kynkaanniemi et al. 2019, arXiv:1904.06991, eq. 1-2; Naeem et al. 2020, arXiv:2002.09797, eq. 3-5.
    """
    real, fake = real.double(), fake.double()
    real_radius, fake_radius = _kth_distance(real, k), _kth_distance(fake, k)
    distance = torch.cdist(real, fake)
    in_real = distance <= real_radius[:, None]  # [n, m]: is fake j inside the ball of real i
    in_fake = distance <= fake_radius[None, :]
    return {
        "precision": in_real.any(0).double().mean().item(),
        "recall": in_fake.any(1).double().mean().item(),
        "density": in_real.double().sum(0).mean().item() / k,
        "coverage": in_real.any(1).double().mean().item(),
    }


def precision_recall(
    real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"], k: int = NEIGHBOURS
) -> tuple[float, float]:
    """Share of fakes within the real manifold, share of reals within the fake manifold."""
    scores = manifold(real, fake, k)
    return scores["precision"], scores["recall"]


def density_coverage(
    real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"], k: int = NEIGHBOURS
) -> tuple[float, float]:
    """Real balls around a fake, divided by k (1: as dense as the data); share of real balls with a fake."""
    scores = manifold(real, fake, k)
    return scores["density"], scores["coverage"]


def _kth_distance(points: Float[Tensor, "n d"], k: int) -> Float[Tensor, "n"]:
    """Distance of each point to its k-th nearest other point."""
    nearest = torch.cdist(points, points).topk(k + 1, largest=False).values  # the first is the point itself
    return nearest[:, -1]


def class_histogram(predicted: Int[Tensor, "n"], reference: Int[Tensor, "m"], classes: int) -> float:
    """Total variation, 0..1, between two class histograms: half the sum of absolute differences."""
    share_a = predicted.bincount(minlength=classes).double() / len(predicted)
    share_b = reference.bincount(minlength=classes).double() / len(reference)
    return (share_a - share_b).abs().sum().item() / 2


def conditional_accuracy(predicted: Int[Tensor, "n"], requested: Int[Tensor, "n"]) -> float:
    """Share of samples that the classifier takes for the class that was asked for."""
    return (predicted == requested).double().mean().item()


def median_ink(images: Float[Tensor, "m c h w"], labels: Int[Tensor, "m"], classes: int) -> Float[Tensor, "k"]:
    """The mean grey level of the median image of every class: half of them have heavier strokes."""
    ink = images.flatten(1).mean(1)
    return torch.tensor([ink[labels == label].median() for label in range(classes)])


def heavier(samples: Float[Tensor, "n c h w"], labels: Int[Tensor, "n"], median: Float[Tensor, "k"]) -> float:
    """The fraction of samples whose strokes are heavier than those of the median training image of their class.

    A preference that a script can state: about one half of real images have it, and so has a model that learned them.
    """
    return (samples.flatten(1).mean(1) > median[labels]).float().mean().item()


def nearest_training(
    samples: Float[Tensor, "n c h w"], training: Float[Tensor, "m c h w"], held_out_median: float
) -> float:
    """Median distance of samples to their nearest training image, over the same median of held-out images.

    Well under 1 means that training images are copied. See `nearest_median` for the distance.
    """
    return nearest_median(samples, training) / held_out_median


def nearest_median(x: Float[Tensor, "n c h w"], training: Float[Tensor, "m c h w"]) -> float:
    """Median Euclidean distance to the nearest training image, larger images averaged down to 8x8 first."""
    x, training = _coarse(x), _coarse(training)
    nearest = [
        torch.stack([torch.cdist(some, block).amin(1) for block in training.split(4096)]).amin(0)
        for some in x.split(256)
    ]
    return torch.cat(nearest).quantile(0.5).item()


def _coarse(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
    size = min(x.shape[-1], PIXEL_GRID)
    return adaptive_avg_pool2d(x, size).flatten(1)


def paired_fidelity(samples: Float[Tensor, "n *s"], reference: Float[Tensor, "n *s"]) -> float:
    """Mean over samples of the root mean square error of each, against the reference from the same noise."""
    return (samples - reference).double().square().flatten(1).mean(1).sqrt().mean().item()
