"""A first look at everything in a few minutes: one technique of each area on real digits, with a small training budget.

python -m flows.demo
"""

import time

from rich.console import Console
from rich.table import Column, Table

from flows.forms import KNOWN, Request
from flows.home import SETTINGS
from flows.pool import Processes, failures, measure
from flows.progress import Display
from flows.records import read_json
from flows.rendering import render
from flows.study import Effort
from flows.tracking import mirror

TECHNIQUES = ("patched_pixel_diffusion", "min_snr_weighting", "dpm_solver_pp_2m", "diff_pruning")
"""One of each area."""
EFFORT = Effort(budget=0.3, blocks=2)


def demo() -> None:
    """Train, compress, sample and evaluate five recipes, mirror them into MLflow, and render the site."""
    started = time.monotonic()
    console = Console()
    console.print("Five recipes on scikit-learn's digits, with a third of the usual training.")
    asked = [Request("digits", methods, effort=EFFORT) for methods in [(), *((id,) for id in TECHNIQUES)]]
    errand = asked[0].errand
    with Processes(SETTINGS.jobs, errand) as crew, Display("demo", 0.0) as display:
        rows = measure([one.study() for one in asked], errand, crew, display.follow)
    if failed := failures(rows):
        raise SystemExit("\n".join(failed))
    for one in asked:
        mirror(read_json(one.record), one.records, one.place)
    render(KNOWN, errand.results, asked[0].site)
    page = (asked[0].site / "index.html").resolve().as_uri()
    console.print(table(asked))
    console.print(f"Done in {time.monotonic() - started:.0f} s. The site of these results:\n  {page}", soft_wrap=True)
    console.print(
        "Next:\n"
        "  .venv/bin/python -m flows.survey --methods dpm_solver_pp_2m deepcache   compose techniques\n"
        "  .venv/bin/dvc repro digits@deepcache                                    reproduce a committed result\n"
        "  make up                                                                 run flows from the Prefect UI",
        highlight=False,
        soft_wrap=True,
    )


def table(asked: list[Request]) -> Table:
    """The numbers of the demo."""
    rows = Table(
        Column("recipe", no_wrap=True),
        Column("FD", justify="right"),
        Column("evaluations", justify="right"),
        Column("MACs a sample", justify="right"),
        Column("parameters", justify="right"),
        title="digits, a quick look (FD-smallnet: lower is better)",
    )
    for one in asked:
        written = read_json(one.record)
        cell = written["cells"][written["default"]]
        spent, fd = cell["cost"], cell["metrics"]["fd"]
        numbers = (
            f"{fd['mean']:.2f}",
            f"{spent['evaluations']:g}",
            f"{spent['macs'] / 1e6:.0f} M",
            f"{spent['parameters']:,}",
        )
        rows.add_row(written["default"], *numbers)
    return rows


if __name__ == "__main__":
    try:
        demo()
    except KeyboardInterrupt:
        raise SystemExit("Stopped; what is finished is kept, and the next run goes on from there.") from None
