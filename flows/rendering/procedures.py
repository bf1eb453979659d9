"""How numbers become statements: every procedure of the statistics with its formula and source, as the site has it."""

from dataclasses import dataclass

from flows.cell import BLOCK
from flows.ledger import FALSE_DISCOVERIES
from flows.rendering.numbers import percent
from flows.score import SHORT
from flows.timing import ROUNDS
from methods.measure.cost import WARM_UP
from methods.measure.quality import FLOOR_DRAWS


@dataclass(frozen=True)
class Procedure:
    """A procedure; `formula` is LaTeX, `code` the function that carries it out."""

    title: str
    about: str
    formula: str | None
    source: str
    code: str


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
        "Better or worse is said only where the 95 % interval of the paired difference lies on one side of zero; else "
        "the two are not told apart, which is no evidence that they are equal. These words in tables are read one by "
        "one: of many true zeros about one in twenty gets a word by chance. Verdicts on claims are corrected for "
        "their number, words in tables are not.",
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
        "two order statistics and assumes no distribution; with the fewest rounds that allow one it is the "
        "whole range.",
        None,
        "the sign test’s interval of a median",
        "median_interval",
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
    f"A perfect sampler does not score zero. Its expected FD is the mean over {FLOOR_DRAWS} redraws of the training "
    "images themselves, with replacement, class by class in the proportions that are asked for. Real held-out images, "
    "which nobody trained on, are scored too: if the value is right, their excess over the bias at their own number is "
    "near zero. Numbers of different n, reference or feature network are refused, never compared.",
    r"\mathrm{E}\,[\mathrm{FD}] \approx \mathrm{FD}_\infty + c\, d^2 / n",
    "this survey",
    "bias_floor",
)
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
