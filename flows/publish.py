"""Render the site from the catalog and the results.

python -m flows.publish
"""

from pathlib import Path

import cyclopts
from prefect import flow

import catalog
from flows.home import PUBLIC, RESULTS
from flows.rendering import render
from flows.study import main


@flow(name="publish", flow_run_name="publish the site")
def publish(results: Path = RESULTS, out: Path = PUBLIC) -> str:
    """Render every page; returns the address of the first."""
    render(catalog.load(), results, out)
    return (out / "index.html").resolve().as_uri()


app = cyclopts.App(name="python -m flows.publish", help=__doc__, help_format="plaintext")


@app.default
def command(*, results: Path = RESULTS, out: Path = PUBLIC) -> None:
    """Render the site into a folder; it needs no server, neither to build nor to read."""
    render(catalog.load(), results, out)
    print((out / "index.html").resolve().as_uri())


if __name__ == "__main__":
    main(app)
