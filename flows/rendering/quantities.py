"""Every quantity the site shows: what it is, where it comes from, which way is better, and what it does not see.

The only place that knows the direction of a metric.
"""

from dataclasses import dataclass
from typing import Literal

from catalog import Bed
from flows.score import COUNTED, EXACT_REFERENCE_STEPS, REFERENCE_STEPS, SHORT
from flows.timing import ROUNDS
from methods.measure.plane import COVERED_SHARE, EXACT_TRANSPORT_LIMIT, INSIDE_STDS, PROJECTIONS
from methods.measure.quality import NEIGHBOURS, PIXEL_GRID
from methods.measure.reference import REFERENCE_SIZE

Direction = Literal["lower", "higher"]
BLOCKS = "Student’s interval over blocks."
U_STATISTIC = (
    "Student’s interval over blocks; within a block also the standard error from the variance of the U-statistic: "
    "4/n Var(g) for each side, g being what a point alone adds. Where the two distributions agree it is about twice "
    "too large, which errs on the safe side."
)
WIDEST = 2
"""How many times its lower end the upper end of a timing's interval may be for the ratio to be compared."""
BALLS = f"balls reach to the {NEIGHBOURS}th nearest neighbour"


@dataclass(frozen=True)
class Metric:
    """How to read a quality: `better` is the direction, None where neither is; `formula` is LaTeX."""

    title: str
    better: Direction | None
    about: str
    formula: str
    source: str
    blind: str
    bias: str
    uncertainty: str = BLOCKS


METRICS = {
    "fd": Metric(
        "FD",
        "lower",
        "FD-smallnet: the squared Fréchet distance between two Gaussians, fitted to the features of the samples and of "
        f"at most {REFERENCE_SIZE:,} training images, in one small frozen classifier of the bed.",
        r"\mathrm{FD} = \|m_1 - m_2\|^2 + \mathrm{tr}\bigl(C_1 + C_2 - 2\,(C_1 C_2)^{1/2}\bigr)",
        "Dowson and Landau 1982; Heusel et al. 2017, arXiv:1706.08500, eq. 6",
        "Everything the classifier does not look at, and every difference beyond mean and covariance; copies of the "
        "training images score perfectly. Classes that are missing can hide each other: on CIFAR-10 it falls again "
        "when a third and a fourth are dropped.",
        "Upwards, by an amount that falls with the number of samples; the bed’s floor shows it.",
    ),
    "kid": Metric(
        "KID",
        "lower",
        "Kernel distance: the squared mean discrepancy in the same features, divided by the root mean square of the "
        "reference’s, with a polynomial kernel.",
        r"\tfrac{1}{n(n-1)} \sum_{i \ne j} k(x_i, x_j) + \tfrac{1}{m(m-1)} \sum_{i \ne j} k(y_i, y_j)"
        r" - \tfrac{2}{nm} \sum_{i, j} k(x_i, y_j) \qquad k(x, y) = \left(x^\top y / d + 1\right)^3",
        "Bińkowski et al. 2018, arXiv:1801.01401, Section 4; Gretton et al. 2012, JMLR 13, eq. 3",
        "Everything the classifier does not look at, and copies of the training images.",
        "None from the number of samples, so it may be slightly negative; equal numbers of every class push it a "
        "little below zero.",
        U_STATISTIC,
    ),
    "fidelity": Metric(
        "Fidelity error",
        "lower",
        "How far a sample lies from the one that DPM-Solver++(2M) makes of the same noise and label with the weights "
        f"that base training ended at, in {REFERENCE_STEPS} steps ({EXACT_REFERENCE_STEPS:,} where the denoiser is "
        "exact): the root mean square error over pixels or coordinates, averaged over samples. For what changes "
        "weights afterwards (quantized, pruned, distilled) it is the distance from where the network went before. What "
        "trains another network has a flow of its own, so numbers are compared only where base weights are shared, and "
        "not at all for what means to change images.",
        r"\tfrac{1}{n} \sum_i \left( \tfrac{1}{d} \|x_i - x_i^\ast\|^2 \right)^{1/2}",
        "this survey",
        "Whether the weights are any good: it measures a sampler against its own network, so it exists only where a "
        "technique follows the weights’ flow from noise to image, without guidance and without fresh noise on the way. "
        "A different sample may be as good a one.",
        "The reference has an error of its own, so values near its size are an upper bound.",
    ),
    "accuracy": Metric(
        "Label accuracy",
        "higher",
        "The share of samples that the bed’s classifier takes for the class asked for.",
        r"\tfrac{1}{n} \sum_i \left[\, c(x_i) = y_i \,\right]",
        "a count, by the classifier whose own accuracy is stated with the bed",
        "Variety: one perfect image of every class scores perfectly. Beyond the classifier’s own accuracy it rewards "
        "what is typical.",
        "None.",
    ),
    "precision": Metric(
        "Precision",
        "higher",
        f"The share of samples within a ball around some real image, in feature space; {BALLS}.",
        r"\tfrac{1}{m} \sum_j \left[\, \exists\, i: \|\phi(y_j) - \phi(x_i)\| \le r_k(x_i) \,\right]",
        "Kynkäänniemi et al. 2019, arXiv:1904.06991, eq. 1 and 2",
        "Variety, and how often each region is visited; one outlier among the real images widens the manifold.",
        "Depends on both numbers of samples and on k, which are fixed for a bed.",
    ),
    "recall": Metric(
        "Recall",
        "higher",
        f"The share of real images within a ball around some sample, in feature space; {BALLS}.",
        r"\tfrac{1}{n} \sum_i \left[\, \exists\, j: \|\phi(x_i) - \phi(y_j)\| \le r_k(y_j) \,\right]",
        "Kynkäänniemi et al. 2019, arXiv:1904.06991, eq. 1 and 2",
        "Realism: scattered samples have wide balls, so blur and noise can raise it.",
        "Depends on both numbers of samples and on k, which are fixed for a bed.",
    ),
    "density": Metric(
        "Density",
        "higher",
        f"How many real balls a sample lies in, over their expected number for real images; {BALLS}.",
        r"\tfrac{1}{k m} \sum_j \sum_i \left[\, \|\phi(y_j) - \phi(x_i)\| \le r_k(x_i) \,\right]",
        "Naeem et al. 2020, arXiv:2002.09797, eq. 3 to 5",
        "Variety: samples crowded where real images are dense score above one.",
        "Depends on both numbers of samples and on k, which are fixed for a bed.",
    ),
    "coverage": Metric(
        "Coverage",
        "higher",
        f"The share of real images whose ball holds a sample ({BALLS}). In the plane: the share of modes that hold, "
        f"within {INSIDE_STDS:g} standard deviations, {COVERED_SHARE:.0%} of the samples due to them.".replace(
            "%", " %"
        ),
        r"\tfrac{1}{n} \sum_i \left[\, \exists\, j: \|\phi(y_j) - \phi(x_i)\| \le r_k(x_i) \,\right]",
        "Naeem et al. 2020, arXiv:2002.09797, eq. 3 to 5; in the plane, a count",
        "How often what is covered is visited, and samples far from everything.",
        "Upwards with more samples, which are fixed for a bed.",
    ),
    "histogram": Metric(
        "Class histogram",
        "lower",
        "Total variation between the classes that the classifier sees in samples and in real images.",
        r"\tfrac{1}{2} \sum_c |p_c - q_c|",
        "a count",
        "Everything within a class.",
        "Upwards: two draws of equal classes differ a little by chance.",
    ),
    "nearest": Metric(
        "Nearest training image",
        None,
        "The median distance of samples to their nearest training image, over the same median of held-out images; "
        "far below one means copying. Euclidean distance in pixels, larger images averaged down to "
        f"{PIXEL_GRID}x{PIXEL_GRID} first.",
        r"\mathrm{median}_i \min_j \|x_i - t_j\| \;/\; \mathrm{median}_i \min_j \|h_i - t_j\|",
        "this survey, as a check for memorization",
        "Copies that were shifted or otherwise changed; above one it says nothing about quality.",
        "None that depends on the number of samples.",
    ),
    "fd_new": Metric(
        "FD of new classes",
        "lower",
        "The Fréchet distance of the classes that base training was not shown: what an adaptation has learned.",
        r"d_F(\text{samples of new classes}, \text{training images of new classes})",
        "the Fréchet distance, over some of the classes",
        "What the Fréchet distance does not see.",
        "Upwards with fewer samples: these are about a third of all, so it is compared with itself alone.",
    ),
    "fd_old": Metric(
        "FD of known classes",
        "lower",
        "The Fréchet distance of the classes that base training was shown: what an adaptation has forgotten.",
        r"d_F(\text{samples of known classes}, \text{training images of known classes})",
        "the Fréchet distance, over some of the classes",
        "What the Fréchet distance does not see.",
        "Upwards with fewer samples: these are about two thirds of all, so it is compared with itself alone.",
    ),
    "preferred": Metric(
        "Heavier strokes",
        "higher",
        "The share of samples of known classes that have more ink than the median training image of their class: the "
        "preference that preference optimisation is given. Half of real images have it.",
        r"\tfrac{1}{n} \sum_i \left[\, \bar{x}_i > \mathrm{median}_{j:\, y_j = y_i}\, \bar{t}_j \,\right]",
        "a count; the preference is this survey’s",
        "Whether a sample is still a digit.",
        "None.",
    ),
    "edges": Metric(
        "Outline error",
        "lower",
        "How far the outline of a sample is from that of the held-out image which a control describes: the root mean "
        "square difference of Sobel gradients, averaged over samples of known classes. Without a control it says how "
        "much two digits of a class differ.",
        r"\tfrac{1}{n} \sum_i \left( \tfrac{1}{d} \left\| |\nabla x_i| - |\nabla w_i| \right\|^2 \right)^{1/2}",
        "this survey",
        "Everything that an outline does not show.",
        "None that depends on the number of samples.",
    ),
    "w2": Metric(
        "Wasserstein",
        "lower",
        "The distance between samples and one fixed draw of the truth by exact optimal transport, for at most "
        f"{EXACT_TRANSPORT_LIMIT:,} points a side.",
        r"W_2^2 = \min_{\pi} \sum_{i, j} \pi_{ij} \|x_i - y_j\|^2",
        "the definition; solved by the library POT",
        "It says how much is wrong, not what; chance shares of the modes outweigh small errors of a sampler.",
        "Upwards: two draws of the truth lie apart, and the fixed draw is the same for everyone. Samples drawn "
        "together more tightly than the truth may therefore score below a perfect sampler.",
    ),
    "sliced_w2": Metric(
        "Sliced Wasserstein",
        "lower",
        f"The root mean square of the same distance along {PROJECTIONS} fixed directions.",
        r"\left( \tfrac{1}{L} \sum_{l} W_2^2(\theta_l^\top x, \theta_l^\top y) \right)^{1/2}",
        "Bonneel et al. 2015, J. Math. Imaging Vis. 51, 22",
        "Structure that no projection onto a line shows.",
        "Upwards, less than the exact distance.",
    ),
    "mmd": Metric(
        "MMD",
        "lower",
        "The squared mean discrepancy with a Gaussian kernel, whose bandwidth is the median distance within the "
        "reference.",
        r"\tfrac{1}{n(n-1)} \sum_{i \ne j} k(x_i, x_j) + \tfrac{1}{m(m-1)} \sum_{i \ne j} k(y_i, y_j)"
        r" - \tfrac{2}{nm} \sum_{i, j} k(x_i, y_j) \qquad k(x, y) = e^{-\|x - y\|^2 / 2 h^2}",
        "Gretton et al. 2012, JMLR 13, eq. 3",
        "Detail much finer than the bandwidth, such as the width of a mode.",
        "None from the number of samples, so it may be slightly negative.",
        U_STATISTIC,
    ),
    "off_manifold": Metric(
        "Off the manifold",
        "lower",
        f"The share of samples more than {INSIDE_STDS:g} standard deviations from every mode.",
        r"\tfrac{1}{n} \sum_i \left[\, \min_k \|x_i - \mu_k\| / s_k > a \,\right]",
        "a count",
        "How the samples near the modes are spread.",
        "None.",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """A cost that is counted exactly, and how."""

    title: str
    about: str


COSTS = {
    "evaluations": Cost(
        "Evaluations",
        "Rows of a batch that the network is given, per sample, counted where it is called: guidance counts twice.",
    ),
    "sequential_calls": Cost(
        "Sequential calls", "Calls of the network that wait for one another, whatever the size of the batch."
    ),
    "macs": Cost(
        "MACs",
        "Multiply-accumulates that ran during the whole sampling of one sample, so that caches and early exits count: "
        f"read from the operators that reached a kernel, over {COUNTED} samples. Elementwise work, normalization, "
        "softmax and moving data are left out. Operators without a formula, among them all packed integer kernels, are "
        "listed by name beside the count, never taken for zero.",
    ),
    "parameters": Cost(
        "Parameters, total", "Numbers in the model as shipped; a quantized weight counts the numbers it stands for."
    ),
    "active_parameters": Cost(
        "Parameters, active",
        "Parameters of the parts that an evaluation calls, averaged over the evaluations of a run: fewer than all "
        "where an evaluation skips parts.",
    ),
    "bytes": Cost("Bytes as shipped", "What the weights occupy, quantized tensors by their parts, shared ones once."),
    "training_images": Cost("Training images", "Images seen in base training, mean over training seeds."),
    "training_macs": Cost(
        "Training MACs",
        "Multiply-accumulates of base training, backward passes included: extrapolated in a straight line from two "
        f"short runs of the same training loop, of {SHORT} and {2 * SHORT} iterations.",
    ),
    "one_off_images": Cost(
        "One-off images", "Images seen between base training and shipping: to distil, fine-tune, prune or calibrate."
    ),
    "one_off_macs": Cost("One-off MACs", "Multiply-accumulates of that preparation, extrapolated in the same way."),
}

SUMS = {
    "preparation_macs": Cost(
        "Preparation MACs", "Training and one-off MACs together: what is spent before the first sample."
    )
}

MACHINE = {
    "latency": Cost(
        "Latency",
        "Seconds for one sample, subject and control in turns (A B A B) in one process after warm-up: the median of "
        f"the ratios of {ROUNDS} or more rounds, with the interval between two order statistics, which assumes no "
        "distribution. Where the machine had more to do than it has cores, or one end of the interval is more than "
        f"{WIDEST} times the other, the ratio stands on the technique’s own page alone: frontier, first page and "
        "tables that put techniques side by side leave it out and say unsteady.",
    ),
    "throughput": Cost(
        "Throughput",
        "The same with the bed’s batch, which keeps the processor busy; the ratio is of seconds, below one is faster.",
    ),
    "start": Cost(
        "First sample",
        "Seconds from the files to the first sample, in a process that has drawn others: reading the weights, applying "
        "what is applied at run time, exporting a graph, compiling it, which is quicker where the compiler remembers "
        "the same code on disk. Taken once, so it has no interval.",
    ),
    "memory": Cost(
        "Peak memory",
        "The most memory that was resident in a fresh process that samples one batch, or allocated on the CUDA device "
        "for it. Of a process most is the interpreter and its libraries, so loading the model and sampling nothing "
        "stands beside it, and the ratio of what either needs above that. Taken once, so it has no interval.",
    ),
    "energy": Cost("Energy", "Not measured: it takes a hardware counter, and none is read here."),
}  # fmt: skip


def title(key: str) -> str:
    """The name of a metric or cost."""
    known = METRICS.get(key) or COSTS.get(key) or SUMS.get(key) or MACHINE.get(key)
    return known.title if known else key


def main_metric(bed: Bed) -> str:
    """The quality that stands for a bed: a distance of distributions, in features or in the plane."""
    return "fd" if bed.features else "w2"


def charted(bed: Bed) -> list[str]:
    """The qualities of which a bed has charts: the distance, faithfulness to the weights, realism, variety."""
    near, wide = ("precision", "recall") if bed.features else ("off_manifold", "coverage")
    return [main_metric(bed), "fidelity", near, wide]


def counted(bed: Bed) -> list[str]:
    """The costs that differ between cells of a bed: where the denoiser is exact there is no network to count."""
    return ["evaluations", "macs", "parameters", "bytes"] if bed.network else ["evaluations", "sequential_calls"]
