"""`python -m catalog` checks the catalog; `python -m catalog --write-schema` also writes `catalog/schema`."""

import json
import sys
from pathlib import Path

import cyclopts

from catalog import Baseline, Bed, CatalogError, Survey, Taxonomy, Technique, load

MODELS = (Technique, Taxonomy, Survey, Bed, Baseline)
app = cyclopts.App(name="catalog", help="Check what the literature is said to claim.")


def schemas() -> dict[str, str]:
    """The JSON Schema of every kind of file, by file name."""
    texts = (json.dumps(model.model_json_schema(), indent=1, sort_keys=True) + "\n" for model in MODELS)
    return {f"{model.__name__.lower()}.json": text for model, text in zip(MODELS, texts, strict=True)}


@app.default
def check(*, write_schema: bool = False) -> None:
    """Check every file and print what there is.

    Parameters
    ----------
    write_schema
        Write the JSON Schema of the files, from which editors complete.
    """
    if write_schema:
        for name, text in schemas().items():
            (Path(__file__).parent / "schema" / name).write_text(text, encoding="utf-8")
    try:
        catalog = load()
    except CatalogError as wrong:
        sys.exit(str(wrong))
    claims = [claim for technique in catalog.techniques.values() for claim in technique.claims]
    testable = sum(claim.untested is None for claim in claims)
    print(
        f"{len(catalog.techniques)} techniques in {len(catalog.taxonomy.folders)} families,"
        f" {len(claims)} claims ({testable} testable),"
        f" {len(catalog.surveys)} surveys, {len(catalog.beds)} beds."
    )


if __name__ == "__main__":
    app()
