"""Score samples, count costs, and write the record of a technique with its controls, and mirror it into MLflow.

python -m flows.evaluate --bed digits --methods deepcache
python -m flows.evaluate --claims                 every verdict, computed from the results
"""

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from rich.console import Console
from rich.table import Table

import catalog
from flows import timing
from flows.forms import Bed, Blocks, Budget, Given, Methods, Request, command_line, request, run_name
from flows.home import RESULTS
from flows.ledger import FALSE_DISCOVERIES, Judged, as_json, judge, tally
from flows.study import FULL, main, record
from flows.tracking import mirror


@task(cache_policy=NO_CACHE, task_run_name="record")
def write_record(asked: Request, run: str) -> str:
    """Measure every cell of the request's page; returns the path of the record."""
    this = asked.study()
    written = record(this, asked.place, asked.records)
    if written["status"] == "ok":
        full = asked.effort == FULL
        timing.write(this, written["spec_hash"], asked.place, asked.records, memory=full)
    mirror(written, asked.records, asked.place, run)
    create_table_artifact(rows(written), description=f"{this.id} on {asked.bed}, and what it is held against")
    if written["status"] == "failed":
        raise RuntimeError(written["reason"])
    return str(asked.record)


def rows(written: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells of a record as lines of a table."""
    return [
        {
            "cell": name,
            **{key: round(value["mean"], 4) for key, value in cell["metrics"].items()},
            **{key: cell["cost"][key] for key in ("evaluations", "macs", "parameters", "bytes")},
        }
        for name, cell in written["cells"].items()
    ]


@flow(name="evaluate", flow_run_name=run_name("evaluate"))
def evaluate(
    bed: Bed = "digits", methods: Methods = [], parameters: Given = {}, budget: Budget = 1.0,
    blocks: Blocks = None,
) -> str:  # fmt: skip
    """Measure a technique and its controls: quality with intervals, cost, and proof that it did something."""
    return write_record(request(bed, methods, parameters, budget, blocks), str(flow_run.id))


app = command_line(evaluate, __doc__)


@app.command(name="--claims")
def claims(
    *, bed: str | None = None, results: Path = RESULTS, table: Annotated[Path | None, Parameter(name="--json")] = None
) -> None:
    """Compute the verdict of every claim from the results, and print the ledger.

    Parameters
    ----------
    bed: only the claims of this bed
    results: where the records lie
    table: also write the ledger here, as JSON
    """
    known = catalog.load()
    judged = judge(known, results)
    shown = [each for each in judged if bed is None or each.bed == known.bed(bed).name]
    console = Console()
    console.print(ledger_table(shown))
    tests = sum(each.adjusted is not None for each in judged)
    console.print(
        ", ".join(f"{count} {status}" for status, count in tally(shown).items())
        + f"; {sum(each.stale is not None for each in shown)} stale. False discoveries among the {tests} claims with"
        f" an interval are held at {FALSE_DISCOVERIES:.0%}.",
        highlight=False,
    )
    if table:
        table.write_text(json.dumps([as_json(each) for each in shown], indent=1) + "\n")


def ledger_table(judged: list[Judged]) -> Table:
    """A line for every claim and bed."""
    rows = Table("technique", "claim", "bed", "verdict", "scale", "blocks", "n", "what was found, or why nothing was")
    for each in judged:
        status = each.status + (" (stale)" if each.stale else "")
        told = each.verdict.text if each.verdict else each.reason or ""
        blocks = str(len(each.sample)) if each.sample else ""
        rows.add_row(
            each.technique, each.claim.id, each.bed or "", status, each.scale or "", blocks, str(each.n or ""), told
        )
    return rows


if __name__ == "__main__":
    main(app)
