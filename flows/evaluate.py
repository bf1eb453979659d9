"""Score samples, count costs, and write the record of a technique with its controls, and mirror it into MLflow.

python -m flows.evaluate --bed digits --methods deepcache
python -m flows.evaluate --claims                 every verdict, computed from the results
"""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Failed
from rich.console import Console
from rich.table import Table

import catalog
from flows.artifacts import progress, show_record
from flows.forms import KNOWN, Bed, Blocks, Budget, Given, Methods, command_line, form, request, run_name
from flows.home import RESULTS
from flows.ledger import FALSE_DISCOVERIES, Judged, as_json, judge, tally
from flows.pool import Here, failures, measure
from flows.records import read_json
from flows.study import main


@flow(name="evaluate", flow_run_name=run_name("evaluate"))
@form
def evaluate(
    bed: Bed = "digits", methods: Methods = [], parameters: Given = [], budget: Budget = 1.0,
    blocks: Blocks = None,
) -> str | State:  # fmt: skip
    """Measure a technique and its controls: quality with intervals, cost, and proof that it did something."""
    from flows.tracking import mirror  # MLflow takes seconds to import, and only records need it

    asked = request(bed, methods, parameters, budget, blocks)
    this, errand = asked.study(), asked.errand
    with progress(f"evaluate {this.id} on {asked.bed}", 1.0) as report:
        rows = measure([this], errand, Here(errand), lambda done, whole, what: report(what, int(done), int(whole), 0.0))
    failed = failures(rows)
    if not asked.record.exists():
        return Failed(message="; ".join(failed))
    written = read_json(asked.record)
    mirror(written, asked.records, asked.place, flow_run.id or "")
    show_record(KNOWN, written, asked.records)
    return Failed(message="; ".join(failed)) if failed else str(asked.record)


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
