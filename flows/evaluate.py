"""Score samples, count costs, and write the record of a technique with its controls, and mirror it into MLflow.

python -m flows.evaluate --bed digits --methods deepcache
"""

from typing import Any

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from flows.forms import Bed, Blocks, Budget, Given, Methods, Request, command_line, request, run_name
from flows.study import main, record
from flows.tracking import mirror


@task(cache_policy=NO_CACHE, task_run_name="record")
def write_record(asked: Request, run: str) -> str:
    """Measure every cell of the request's page; returns the path of the record."""
    this = asked.study()
    written = record(this, asked.place, asked.records)
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


if __name__ == "__main__":
    main(command_line(evaluate, __doc__))
