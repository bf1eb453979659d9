"""Render the site from the catalog and the results.

python -m flows.publish
python -m flows.publish --serve     serve it locally, rendered again whenever results, catalog or templates change
"""

import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated

import cyclopts
from prefect import flow
from prefect.client.schemas.objects import State
from watchfiles import Change, watch

import catalog
from flows.artifacts import show_links
from flows.forms import asks, form
from flows.home import PUBLIC, QUICK, RESULTS, SETTINGS
from flows.rendering import SITE, render
from flows.study import EXPECTED, main

CATALOG = Path(catalog.__file__).parent
QUIET_MS, LONGEST_MS = 2_000, 20_000
"""A rendering waits until nothing has changed for the first time, but not longer than the second."""


if TYPE_CHECKING:
    Quick = bool
else:
    Quick = Annotated[bool, asks("The site of the quick looks, which lies in work/quick, in place of the results'.")]


@flow(name="publish", flow_run_name="publish the site")
@form
def publish(quick: Quick = False) -> str | State:
    """Render every page from the catalog and the records; returns the address of the first."""
    results, out = (QUICK / "results", QUICK / "public") if quick else (RESULTS, PUBLIC)
    render(catalog.load(again=True), results, out)
    first = (out / "index.html").resolve().as_uri()
    show_links([f"site: `{first}`", *([] if quick else [f"where `make up` shows it: {SETTINGS.site_url}"])])
    return first


class Pages(SimpleHTTPRequestHandler):
    """Serves files, and has a browser ask each time whether they changed."""

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not worth a line."""


def render_again(results: Path, out: Path) -> str:
    """Render from the files as they are now, and say how it went in a line; what fails leaves the old site."""
    began = time.perf_counter()
    try:
        render(catalog.load(again=True), results, out)
    except Exception as error:
        reason = str(error) if isinstance(error, EXPECTED) else f"{type(error).__name__}: {error}"
        return f"The site stays as it was: {reason}"
    return f"Rendered in {time.perf_counter() - began:.1f} seconds."


def visible(_: Change, path: str) -> bool:
    """Whether a change counts: files are written beside their place, under a name with a dot, and then renamed."""
    return not Path(path).name.startswith(".") and "__pycache__" not in path


def keep(results: Path, out: Path) -> None:
    """Serve the site and keep it as new as what it is made from, until interrupted."""
    server = ThreadingHTTPServer((SETTINGS.host, SETTINGS.site_port), partial(Pages, directory=str(out)))
    Thread(target=server.serve_forever, daemon=True).start()
    print(f"Serving {out} at {SETTINGS.site_url}.")
    print(render_again(results, out))
    results.mkdir(parents=True, exist_ok=True)
    for _ in watch(results, CATALOG, SITE, watch_filter=visible, debounce=LONGEST_MS, step=QUIET_MS):
        print(render_again(results, out))


app = cyclopts.App(name="python -m flows.publish", help=__doc__, help_format="plaintext")


@app.default
def command(*, results: Path = RESULTS, out: Path = PUBLIC, serve: bool = False) -> None:
    """Render the site into a folder; it needs no server, neither to build nor to read.

    Parameters
    ----------
    results: where the records lie
    out: where the site goes
    serve: keep running: serve the site at ATLAS_HOST and ATLAS_SITE_PORT, and render it again when results, catalog or
        templates change; a change of Python code needs a restart
    """
    if serve:
        return keep(results, out)
    render(catalog.load(), results, out)
    print((out / "index.html").resolve().as_uri())


if __name__ == "__main__":
    main(app)
