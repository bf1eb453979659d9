"""How numbers become statements: every procedure of the statistics with its formula and source, as the site has it."""

from dataclasses import dataclass

from scipy import stats

from catalog import ON_THE_WAY
from flows.cell import BLOCK
from flows.floors import DRAWS, GROUPS
from flows.gradients import STEPS
from flows.ledger import FALSE_DISCOVERIES
from flows.rendering.comparison import ROUNDING
from flows.rendering.composition import WHOLE
from flows.rendering.frontier import LEVEL
from flows.rendering.numbers import percent
from flows.score import SHORT
from flows.timing import ROUNDS
from methods.measure.cost import WARM_UP
from methods.measure.gradients import EDGES, LEARNING
from methods.measure.quality import FLOOR_DRAWS


@dataclass(frozen=True)
class Procedure:
    """A procedure; `formula` is LaTeX, `code` the function that carries it out."""

    title: str
    about: str
    formula: str | None
    source: str
    code: str


def order_level(rounds: int) -> float:
    """How often the range from the lowest to the highest of so many values holds their distribution's median."""
    return float(1 - 2 * stats.binom.cdf(0, rounds, 0.5))


INTERVALS = {
    "blocks": Procedure(
        "Blocks",
        "The unit of independence is a block: n samples from one training seed and one sampling seed. Block i is "
        "sampled with sampling seed i from the weights of training seed i; a bed with one training seed uses its "
        f"weights for every block. Sample j of the block with seed s starts from the noise of seed {BLOCK:,} s + j, "
        "whatever the size of the batch, so every cell of a bed meets the same noise and the same labels, and "
        "trainings with the same seed meet the same data in the same order.",
        None,
        "this survey",
        "flows/cell.py",
    ),
    "student": Procedure(
        "The interval of a quality",
        "Student’s 95 % interval of the mean over b blocks, v being the quality of a block and s the standard "
        "deviation over blocks. Where each block has its own training seed, s holds the noise of training and that of "
        "sampling; with one training seed it holds that of sampling only, and claims about training say so. The naive "
        "bootstrap is not used: for a Fréchet distance its interval leaves out its own point estimate.",
        r"\bar v \pm t_{0.975,\, b-1} \; s / \sqrt{b}",
        "Student 1908, Biometrika 6, 1",
        "t_interval",
    ),
    "paired": Procedure(
        "Differences",
        "The same interval of the differences block by block, so that what two cells share, noise, labels and often "
        "weights, cancels. Two cells whose own intervals overlap may well be told apart by it.",
        r"d_i = v_i^\mathrm{subject} - v_i^\mathrm{control} \qquad \bar d \pm t_{0.975,\, b-1} \; s_d / \sqrt{b}",
        "Student 1908, Biometrika 6, 1",
        "paired",
    ),
    "words": Procedure(
        "Better, worse, not told apart",
        "Better or worse is said only where the 95 % interval of the paired difference lies on one side of zero, and "
        f"where the difference is at least {percent(ROUNDING)} of the larger side: less is what another order of the "
        "same sums leaves. Else the two are not told apart, which is no evidence that they are equal. These words in "
        "tables are read one by one: of many true zeros about one in twenty gets a word by chance. Verdicts on claims "
        "are corrected for their number, words in tables are not.",
        None,
        "this survey",
        "flows/rendering/comparison.py",
    ),
    "fieller": Procedure(
        "Ratios",
        "Fieller’s interval: all ratios r that a t test of subject minus r times control does not reject. It is "
        "unbounded where the control cannot be told from zero, and then there is no verdict. Counts are exact, and "
        "their ratios have no interval.",
        r"\left\{\, r : |\bar v^\mathrm{subject} - r\, \bar v^\mathrm{control}| \le t_{0.975,\, b-1}\;"
        r" s_{\mathrm{subject} - r\, \mathrm{control}} / \sqrt{b} \,\right\}",
        "Fieller 1954, J. R. Stat. Soc. B 16, 175",
        "ratio",
    ),
    "tost": Procedure(
        "“No loss”: equivalence",
        "A difference that was not found is no evidence of no difference. Two one-sided tests are: both have to reject "
        "that the difference is as large as the tolerance, below and above, each at 5 %. That is the case where the "
        "90 % interval lies within the tolerance, so far better than the control fails it as well.",
        r"-\delta \le \bar d - t_{0.95,\, b-1}\, s_d / \sqrt{b} \quad\mathrm{and}\quad"
        r" \bar d + t_{0.95,\, b-1}\, s_d / \sqrt{b} \le \delta",
        "Schuirmann 1987, J. Pharmacokinet. Biopharm. 15, 657",
        "tost",
    ),
    "ustatistic": Procedure(
        "Kernel distances within a block",
        "KID and MMD are U-statistics, so a single block has a standard error too: g is what one point adds to the "
        "statistic. It is shown beside the interval over blocks; verdicts rest on the latter.",
        r"\mathrm{Var} \approx \tfrac{4}{n} \mathrm{Var}(g_x) + \tfrac{4}{m} \mathrm{Var}(g_y)",
        "Gretton et al. 2012, JMLR 13, 723",
        "mmd2",
    ),
    "order": Procedure(
        "Timings",
        f"After {WARM_UP} rounds of warm-up, {ROUNDS} or more rounds of subject and control in turns (A B A B), so "
        "that a machine that gets slower slows both. The ratio is the median over rounds, its interval lies between "
        f"two order statistics and assumes no distribution; of {ROUNDS} rounds it is the whole range, which holds the "
        f"median in {percent(order_level(ROUNDS))} of cases. A turn is one call of the whole sampling run, all its "
        "steps with the solver around them; loading the model, and compiling it, come before. Latency is of a batch of "
        "one, throughput of the bed’s batch.",
        None,
        "the sign test’s interval of a median",
        "median_interval",
    ),
    "p": Procedure(
        "p-values",
        "Student’s t test of the paired differences against the edge of what a claim lets one expect, its tolerance "
        "included. Where there is one edge (at most, at least) the test is two-sided: twice the smaller of the two "
        "one-sided values, whether the decision is for or against. Where there are two (equal), a decision for takes "
        "the larger of two one-sided values, one for each edge, and one against takes that of the edge which is "
        "overstepped; neither is doubled. A decision is reached exactly where p is at most 5 %.".replace(
            "5 %", percent(FALSE_DISCOVERIES)
        ),
        None,
        "Student 1908, Biometrika 6, 1; Schuirmann 1987, J. Pharmacokinet. Biopharm. 15, 657",
        "methods/measure/verdict.py",
    ),
    "many": Procedure(
        "Many claims at once",
        "Every verdict on uncertain numbers has a p-value: of its decision, for or against. The p-values of the whole "
        "ledger, all techniques and all beds, are adjusted together, and a verdict stands only if its adjusted one is "
        f"at most {percent(FALSE_DISCOVERIES)}; else it reads inconclusive, and its text says why.",
        r"p_{(k)}^\mathrm{adjusted} = \min_{j \ge k} \; \tfrac{m}{j}\, p_{(j)}",
        "Benjamini and Hochberg 1995, J. R. Stat. Soc. B 57, 289",
        "benjamini_hochberg",
    ),
}  # fmt: skip

BIAS = Procedure(
    "Bias and floor",
    f"A perfect sampler does not score zero. Its expected FD is the mean over {DRAWS * FLOOR_DRAWS} redraws of the "
    "training images themselves, with replacement, class by class in the proportions that are asked for; its interval "
    f"is Student's, of {DRAWS} means of {FLOOR_DRAWS}. Real held-out images, which nobody trained on, are scored too: "
    "their excess over the bias at their own number is near zero where they are distributed, in features, as training "
    f"images are. Their interval is the jackknife's, which leaves out each of {GROUPS} parts in turn, every one with "
    "the classes of the whole; for an FD that is all bias it is wider than need be. Numbers of different n, reference "
    "or feature network are refused, never compared.",
    r"\mathrm{E}\,[\mathrm{FD}] \approx \mathrm{FD}_\infty + c\, d^2 / n",
    "this survey",
    "bias_floor",
)
READING = {
    "cells": Procedure(
        "Names of cells",
        "A cell is what is run and measured as one. Its name says whatever is not the default on its bed: a+b is a and "
        "b composed, a(p=1) is a with its parameter p set to that, @10 means that many sampling steps, and ~0.5 "
        "weights after that share of base training. The plain recipe is called baseline.",
        None,
        "this survey",
        "catalog.cell_name",
    ),
    "counters": Procedure(
        "Counters",
        "What a technique counts of its own work, whole numbers with the names that its code gives them. They are "
        "sums over all training and sampling seeds of a cell, over training, whatever comes between training and "
        "shipping, and sampling; so they grow with the number of samples, and say that something happened, not how "
        "much it matters.",
        None,
        "this survey",
        "total_counters",
    ),
    "on-the-way": Procedure(
        "Numbers on the way through training",
        f"The weights that would ship after {', '.join(map(percent, ON_THE_WAY))} of the updates of one and the same "
        "training, averaged over updates as those of the end are, and then sampled as they are. Nothing is trained "
        "anew, and nothing is wound down for the shorter way. Images and MACs of training are those seen until then.",
        None,
        "this survey",
        "train_anew",
    ),
    "gradients": Procedure(
        "Variance of the gradient, by noise level",
        f"Noise levels are cut into {len(EDGES) + 1} by log(alpha / sigma), at whole numbers from {EDGES[0]:g} to "
        f"{EDGES[-1]:g}. At the weights that a technique’s training ends at, the gradients of {STEPS} batches of its "
        "usual size are taken apart into what each level adds to them, after "
        f"{LEARNING} batches from which only the objective may learn where to look. A level’s variance is the trace of "
        "the covariance of its part over batches; the share is of the sum over levels, which leaves out how parts of "
        "different levels vary together. Shares are computed for each training seed, and their interval is "
        "Student’s over seeds.",
        r"V_k = \tfrac{1}{B-1} \Bigl( \sum_b \|g_{b,k}\|^2 - \tfrac{1}{B} \bigl\| \sum_b g_{b,k} \bigr\|^2 \Bigr)"
        r" \qquad V_k \Big/ \sum_j V_j",
        "the usual estimate of a covariance’s trace; Kingma et al. 2021, arXiv:2107.00630",
        "by_noise_level",
    ),
    "reconstruction": Procedure(
        "What a space loses by itself",
        "A technique that diffuses in a space of its own can be no better than what it encodes and decodes. Training "
        "images go there and back, through a codec that is fitted as in its training, once for each training seed, and "
        "are scored as samples are; the interval is Student’s over seeds. Nothing is sampled, so that FD is zero where "
        "nothing is lost.",
        None,
        "this survey",
        "measured",
    ),
    "front": Procedure(
        "Front, tied, beaten",
        "On a frontier something is beaten where another that costs no more is told apart as better, and ties where "
        "something cheaper cannot be told from it; what is left is the front. Told apart means that Student’s interval "
        f"of the paired difference excludes zero at {percent(LEVEL)}. All pairs are compared, and nothing is corrected "
        "for their number: of many that are truly equal some look beaten by chance, so the front is where to look, not "
        "a verdict. Costs are compared as they are, without their own error.",
        None,
        "this survey",
        "standings",
    ),
    "together": Procedure(
        "Multiply, saturate, break",
        "Of two techniques run together: they multiply where all costs that either saves fall by at least "
        f"{percent(WHOLE)} of the product of what each saves alone, and saturate where one falls short of that. They "
        "break where quality is lost beyond the sum of what each loses, by an interval of that excess, paired block "
        "by block, that lies above zero; then it does not matter what they save.",
        r"q_{ab} - q_a - q_b + q_0",
        "this survey",
        "flows/rendering/composition.py",
    ),
    "others": Procedure(
        "Why neither Inception FID nor FD-DINOv2 is here",
        "Both are computed in the features of large networks whose weights would have to be downloaded, and nothing is "
        "downloaded here but data. Those networks were trained on large colour photographs; most beds have grey images "
        "of few pixels, which would have to be enlarged many times, and what such features say of them is not known. "
        "So nothing here can be held against an absolute number of a paper.",
        None,
        "this survey",
        "flows/score.py",
    ),
}
"""Words, names and counts that pages use, and what is left out."""
RESOLUTION = {
    "samplers": Procedure(
        "Between two samplers",
        "Of the same weights with the same noise: the median, over neighbouring points of the baseline’s curve, of the "
        "half-width of the 95 % interval of their paired difference.",
        r"\mathrm{median}_k \; t_{0.975,\, b-1}\, s_{d_k} / \sqrt{b}",
        "this survey",
        "between_samplers",
    ),
    "trainings": Procedure(
        "Between two trainings",
        "The half-width for two methods that are trained b times each, if what they share, data order and noise, "
        "helped nothing; s is the standard deviation of the baseline over its trainings.",
        r"t_{0.975,\, b-1} \; s \sqrt{2 / b}",
        "this survey",
        "between_trainings",
    ),
}
BREAK_EVEN = Procedure(
    "Break-even",
    "The number of samples after which a technique has paid back, in MACs, what it cost beforehand. Preparation is "
    "base training plus everything between it and shipping. Training MACs are counted over two short runs of the real "
    f"training loop, {SHORT} and {2 * SHORT} iterations, and extrapolated: they grow in a straight line.",
    r"N = \frac{(T + P)^\mathrm{subject} - (T + P)^\mathrm{control}}{M^\mathrm{control} - M^\mathrm{subject}}",
    "this survey",
    "break_even",
)
