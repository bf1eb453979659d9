"""Measures the instrument itself: what its loop costs beside a network, and a step beside diffusers' schedulers.

python -m flows.bench

Nothing is trained: what a loop costs does not depend on the weights. Both sides of a step are given the same tensors
and the same noise levels, neither clips its estimates, and a test holds that they end at the same samples.
"""

import copy
import importlib
import importlib.util
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import cyclopts
import torch
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import catalog
from catalog import Cell
from flows.cell import Spec, base_recipe
from flows.progress import Display
from flows.records import provenance, write_json
from methods.core import learning, models, run
from methods.core.calibration import Report
from methods.core.denoiser import Network
from methods.core.errors import Unavailable
from methods.core.parameterization import Noise, Parameterization
from methods.core.process import Cosine, Process
from methods.core.sampling import SampleNoise, Solver
from methods.inference.ode_solver.ddim import DDIM, StochasticDDIM
from methods.inference.ode_solver.dpm_solver_pp_2m import DPMSolverPP2M
from methods.inference.ode_solver.edm_heun import Heun
from methods.measure import cost
from methods.measure.statistics import Interval, median_interval
from methods.training.flow.flow_matching import FlowVelocity, StraightPath
from methods.training.objective.edm_preconditioning import VarianceExploding

BED = "digits"
STEPS = 50
LARGE_BATCH = 512
BAR = 0.05
"""The most that all but the network may cost in a run that draws many samples, as a share of the network's time."""
SHAPES = ((1, 1, 8, 8), (64, 1, 8, 8), (64, 1, 32, 32), (64, 3, 32, 32))
ROUNDS = 6
"""How often the loop is timed: the fewest rounds that bound a median."""
STEP_ROUNDS = 4
"""How many times as often a step is timed, which is short."""

Call = Callable[[], Tensor]
Row = dict[str, Any]


def clock() -> float:
    """Seconds, once the device has finished what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def sampling(batch: int, steps: int) -> tuple[nn.Module, Call]:
    """A network with fresh weights, and a call that samples a batch from it by the baseline's recipe."""
    known = catalog.load()
    bed = known.bed(BED)
    recipe = replace(base_recipe(Spec(known, bed, Cell(methods={}), bed.seeds.blocks)), steps=steps)
    deployed = run.deploy(recipe, models.build(recipe, bed.shape, bed.classes))
    labels = torch.arange(batch) % bed.classes
    return deployed.model.net, lambda: run.generate(recipe, deployed, labels, range(batch))


def watched(net: nn.Module, call: Call) -> tuple[float, float]:
    """Seconds of `call()`, and those of them that passed in the network's forward pass."""
    forward, inside = net.forward, 0.0

    def timed(*arguments: Any) -> Any:
        nonlocal inside
        started = clock()
        prediction = forward(*arguments)
        inside += clock() - started
        return prediction

    net.forward = timed
    try:
        started = clock()
        call()
        return clock() - started, inside
    finally:
        net.forward = forward


def loop(batch: int, rounds: int, report: Report = learning.quiet) -> Row:
    """Seconds of sampling a batch, of its network, and all else as a share of the network's: medians."""
    sampling(batch, steps=2)[1]()  # warm-up
    net, call = sampling(batch, STEPS)
    measured: list[tuple[float, float]] = []
    for i in range(rounds):
        measured.append(watched(net, call))
        report(f"batch of {batch}", i + 1, rounds, 0.0)
    share = median_interval([total / inside - 1 for total, inside in measured])
    return {
        "batch": batch, "steps": STEPS, "bar": BAR, "judged": "within" if share.mean <= BAR else "over",
        "seconds": asdict(median_interval([total for total, _ in measured])),
        "network_seconds": asdict(median_interval([inside for _, inside in measured])), "share": asdict(share),
    }  # fmt: skip


def chain_ratios(scheduler: Any) -> Tensor:
    """sigma / alpha at each step of a scheduler that walks a chain."""
    return torch.sqrt(1 / scheduler.alphas_cumprod.double()[scheduler.timesteps.cpu()] - 1)


def sigma_ratios(scheduler: Any) -> Tensor:
    """sigma / alpha at each step of a scheduler whose sigma is that ratio; Heun's lists most of them twice."""
    return torch.unique_consecutive(scheduler.sigmas.double())[:-1]


def straight_ratios(scheduler: Any) -> Tensor:
    """sigma / alpha at each step of a scheduler whose sigma is the time of the straight path."""
    sigmas = scheduler.sigmas.double()[:-1]
    return sigmas / (1 - sigmas)


@dataclass(frozen=True)
class Pair:
    """A solver, and diffusers' scheduler that takes the same step from the same prediction."""

    name: str
    solver: Solver
    scheduler: str
    ratios: Callable[[Any], Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)
    process: Process = field(default_factory=Cosine)
    parameterization: Parameterization = field(default_factory=Noise)

    def ready(self) -> Any:
        """The scheduler before its first step."""
        scheduler = getattr(library(), self.scheduler)(**self.options)
        scheduler.set_timesteps(STEPS, device=models.device())
        return scheduler


CHAIN = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
UNCLIPPED = {**CHAIN, "clip_sample": False}
SECOND_ORDER = {**CHAIN, "solver_order": 2, "final_sigmas_type": "zero"}
PAIRS = (
    Pair("DDIM", DDIM(), "DDIMScheduler", chain_ratios, UNCLIPPED),
    Pair("DDPM", StochasticDDIM(1.0), "DDPMScheduler", chain_ratios, UNCLIPPED),
    Pair("DPM-Solver++(2M)", DPMSolverPP2M(), "DPMSolverMultistepScheduler", sigma_ratios, SECOND_ORDER),
    Pair("Heun", Heun(), "HeunDiscreteScheduler", sigma_ratios, CHAIN, VarianceExploding()),
    Pair("Flow Euler", DDIM(), "FlowMatchEulerDiscreteScheduler", straight_ratios, {}, StraightPath(), FlowVelocity()),
)  # fmt: skip


def library() -> Any:
    """diffusers. Raises Unavailable."""
    if importlib.util.find_spec("diffusers") is None:
        raise Unavailable("Steps are held against diffusers, which is missing: pip install -r requirements.lock")
    return importlib.import_module("diffusers")


class Fixed(nn.Module):
    """A network that predicts one tensor, whatever it is asked."""

    def __init__(self, prediction: Tensor) -> None:
        super().__init__()
        self.prediction = prediction

    def forward(self, x: Tensor, level: Tensor, labels: Tensor) -> Tensor:
        return self.prediction


def ours(pair: Pair, net: nn.Module, x: Tensor, noise: SampleNoise) -> Call:
    """A run of the solver over the scheduler's noise levels."""
    ratios = pair.ratios(pair.ready()).cpu()
    times = torch.cat([pair.process.time(-torch.log(ratios)), torch.zeros(1, dtype=torch.float64)])
    denoiser = Network(net, pair.process, pair.parameterization, None)
    labels = torch.zeros(len(x), dtype=torch.long, device=x.device)
    return torch.inference_mode()(lambda: pair.solver(denoiser, x, times, labels, noise))


def theirs(pair: Pair, net: nn.Module, x: Tensor) -> Call:
    """A run of the scheduler, in the loop of diffusers' pipelines: those for flows scale nothing."""
    ready, labels = pair.ready(), torch.zeros(len(x), dtype=torch.long, device=x.device)
    scales = hasattr(ready, "scale_model_input")

    def call() -> Tensor:
        scheduler, x_t = copy.copy(ready), x
        for t in scheduler.timesteps:
            prediction = net(scheduler.scale_model_input(x_t, t) if scales else x_t, t, labels)
            x_t = scheduler.step(prediction, t, x_t, return_dict=False)[0]
        return x_t

    return torch.inference_mode()(call)


def sides(pair: Pair, shape: tuple[int, ...]) -> tuple[Call, Call]:
    """Both runs, on the same tensors."""
    rng = torch.Generator().manual_seed(0)
    x, prediction = (torch.randn(shape, generator=rng).to(models.device()) for _ in range(2))
    net = Fixed(prediction)
    return ours(pair, net, x, SampleNoise(range(len(x)), models.device())), theirs(pair, net, x)


class Dispatched(TorchDispatchMode):
    """Counts operators that write a tensor of so many elements, and all others: arithmetic on coefficients."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements, self.passes, self.small = elements, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        large = any(isinstance(leaf, Tensor) and leaf.numel() == self.elements for leaf in tree_leaves(made))
        self.passes += large and not func.is_view
        self.small += not large
        return made


def dispatched(call: Call, evaluations: int) -> dict[str, float]:
    """Operators of a run per evaluation: `passes` write a whole batch, `small` ones do not."""
    with Dispatched(call().numel()) as counted:
        call()
    return {"passes": counted.passes / evaluations, "small": counted.small / evaluations}


def operators(pair: Pair, shape: tuple[int, ...]) -> Row:
    """Operators per evaluation on both sides: exact, where seconds are not."""
    evaluations = len(pair.ready().timesteps)
    here, there = (dispatched(side, evaluations) for side in sides(pair, shape))
    return {"solver": pair.name, "shape": list(shape), "ours": here, "theirs": there}


def step(pair: Pair, shape: tuple[int, ...], rounds: int) -> Row:
    """Microseconds per evaluation on both sides, measured in turns, and their ratio; most steps are one evaluation."""
    here, there = sides(pair, shape)
    evaluations = len(pair.ready().timesteps)
    timed = cost.interleaved(here, there, rounds)
    return {
        "solver": pair.name, "scheduler": pair.scheduler, "shape": list(shape), "judged": judged(timed.ratio),
        "microseconds": {"ours": timed.a.mean / evaluations * 1e6, "theirs": timed.b.mean / evaluations * 1e6},
        "ratio": asdict(timed.ratio),
    }  # fmt: skip


def judged(ratio: Interval) -> str:
    """What an interval of ours / theirs says."""
    return "faster" if ratio.high < 1 else "slower" if ratio.low > 1 else "level"


def steps(rounds: int, report: Report = learning.quiet) -> list[Row]:
    """Every pair at every shape."""
    asked = list(product(PAIRS, SHAPES))
    rows: list[Row] = []
    for pair, shape in asked:
        rows.append(step(pair, shape, rounds))
        report(pair.name, len(rows), len(asked), 0.0)
    return rows


PROCESSES = {
    "imports PyTorch": "import torch",
    "imports all": "import flows.bench",
    "samples a batch": "from flows import bench; bench.sampling({batch}, bench.STEPS)[1]()",
}
"""What is done by a fresh process, and its code."""


def memory(batch: int) -> Row:
    """Peak resident bytes of fresh processes."""
    codes = {name: code.format(batch=batch) for name, code in PROCESSES.items()}
    peaks = {name: cost.peak_memory([sys.executable, "-c", code]) for name, code in codes.items()}
    return {"batch": batch, "bytes": peaks}


def measure(rounds: int) -> Row:
    """All there is to measure. Raises Unavailable."""
    version, found = library().__version__, provenance()
    found["versions"]["diffusers"] = version
    batch = catalog.load().bed(BED).batch
    with Display("bench", 1.0) as display:
        with display.step("the loop", 0.1) as report:
            found["loop"] = [loop(size, rounds, report) for size in (1, batch)]
        with display.step("the loop", 0.6) as report:
            found["loop"].append(loop(LARGE_BATCH, rounds, report))
        with display.step("steps beside diffusers", 0.2) as report:
            found["operators"] = [operators(pair, SHAPES[-1]) for pair in PAIRS]
            found["steps"] = steps(rounds * STEP_ROUNDS, report)
        with display.step("memory of fresh processes", 0.1):
            found["memory"] = memory(batch)
    return found


def show(found: Row, console: Console) -> None:
    """The numbers as tables."""
    host, versions = found["host"], found["versions"]
    title = f"torch {versions['torch']}, diffusers {versions['diffusers']}, {host['cpu']}"
    console.print(f"{title}, {host['threads']} of {host['cores']} threads, load average {host['load']}")
    console.print(loop_table(found["loop"]), step_table(found["steps"]), operator_table(found["operators"]))
    console.print(memory_table(found["memory"]))


def table(*columns: str, title: str, caption: str | None = None) -> Table:
    return Table(*columns, title=title, caption=caption, title_justify="left", caption_justify="left")


def loop_table(rows: Sequence[Row]) -> Table:
    columns = "batch", "steps", "seconds", "in the network", "all else / network", f"bar: {BAR:.0%}"
    drawn = table(*columns, title=f"The loop: the baseline on {BED}")
    for row in rows:
        spent = f"{row['seconds']['mean']:.3f}", f"{row['network_seconds']['mean']:.3f}"
        drawn.add_row(str(row["batch"]), str(row["steps"]), *spent, between(row["share"], ".1%"), row["judged"])
    return drawn


def step_table(rows: Sequence[Row]) -> Table:
    drawn = table(
        *("solver", "batch", "ours", "theirs", "ours / theirs", ""),
        title="A step beside diffusers' scheduler of the same name: microseconds per evaluation",
        caption="DDPM: every sample here draws its noise from a generator of its own, so that none depends on its "
        "batch; diffusers draws once for all. Flow Euler: a velocity is converted to an estimate of x_0 here, as every "
        "prediction is; diffusers adds it to the sample.",
    )
    for row in rows:
        here, there = (f"{row['microseconds'][side]:.0f}" for side in ("ours", "theirs"))
        last, shape = row["shape"] == list(SHAPES[-1]), "x".join(map(str, row["shape"]))
        drawn.add_row(row["solver"], shape, here, there, between(row["ratio"], ".2f"), row["judged"], end_section=last)
    return drawn


def operator_table(rows: Sequence[Row]) -> Table:
    drawn = table(
        *("solver", "passes: ours", "theirs", "small: ours", "theirs"),
        title=f"Operators per evaluation, batch of {SHAPES[-1][0]}",
        caption="A pass writes a tensor as large as the batch; a small operator, such as the cosine of a time, not.",
    )
    for row in rows:
        drawn.add_row(
            row["solver"], *(f"{row[side][kind]:.1f}" for kind in ("passes", "small") for side in ("ours", "theirs"))
        )
    return drawn


def memory_table(peaks: Row) -> Table:
    drawn = table("a fresh process", "peak resident", title=f"Memory, for a batch of {peaks['batch']}")
    for name, peak in peaks["bytes"].items():
        drawn.add_row(name, decimal(peak))
    return drawn


def between(interval: Mapping[str, float], form: str) -> str:
    """A median with its interval."""
    return f"{interval['mean']:{form}} [{interval['low']:{form}}, {interval['high']:{form}}]"


app = cyclopts.App(name="python -m flows.bench", help=__doc__, help_format="plaintext")
ENOUGH = cyclopts.validators.Number(gte=ROUNDS)
Rounds = Annotated[
    int, cyclopts.Parameter(validator=ENOUGH, help="How often the loop is timed; more narrow intervals.")
]
Target = Annotated[Path | None, cyclopts.Parameter(help="Also write the numbers to this file.")]


@app.default
def bench(*, rounds: Rounds = ROUNDS, json: Target = None) -> None:
    """Measure and print, in about a minute. It judges a bar by a word and does not fail."""
    found = measure(rounds)
    show(found, Console())
    if json is not None:
        write_json(json, found)


if __name__ == "__main__":
    from flows.study import main

    main(app)
