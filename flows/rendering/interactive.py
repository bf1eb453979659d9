"""What the pages with controls are given: numbers, their words and who stands where, computed here and nowhere else.

A script file and not JSON, for a page that is opened from a folder may not read other files.
"""

import json
from typing import Any

from flows.rendering.atlas import Atlas
from flows.rendering.comparison import Difference
from flows.rendering.composition import Partner
from flows.rendering.frontier import AXES, Entrant, Place, axis_title
from flows.rendering.numbers import Number
from flows.rendering.quantities import METRICS
from flows.rendering.technique import OnBed, TechniqueView
from methods.measure.reference import UNITS

DATA = "data/atlas.js"


def script(atlas: Atlas) -> bytes:
    """`window.ATLAS`: techniques by id, and every bed that was measured with its rows, numbers and standings."""
    content = {
        "metrics": {
            key: {"title": metric.title, "better": metric.better, "unit": UNITS[key]}
            for key, metric in METRICS.items()
            if metric.better
        },
        "costs": {axis: axis_title(axis) for axis in AXES},
        "techniques": {id: technique(view, atlas.partners.get(id)) for id, view in atlas.techniques.items()},
        "beds": {name: bed(atlas, name) for name, view in atlas.beds.items() if view.record},
    }
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return f"window.ATLAS = {text};\n".encode()


def technique(view: TechniqueView, partner: Partner | None) -> dict[str, Any]:
    """What does not depend on a bed. Whom it refuses stands under the reason, as far as pairs were composed."""
    known = view.technique
    if partner:
        refused = {why: [other.id for other in others] for why, others in partner.refused.items()}
    else:
        refused = {f"both edit {field}": [other.id for other in others] for field, others in view.rivals.items()}
    return {
        "name": known.name, "area": view.area.title, "family": view.family.title, "year": known.paper.year,
        "idea": known.idea, "saves": list(known.cost_axis), "trains": known.changes_training,
        "changes": list(known.changes),
        "refused": refused,
        "claims": view.counts.statuses, "scales": view.counts.scales,
    }  # fmt: skip


def bed(atlas: Atlas, name: str) -> dict[str, Any]:
    """A bed with its rows; standings by metric and cost name rows by their place in the list."""
    view, rows = atlas.beds[name], atlas.entrants(atlas.catalog.bed(name))
    keys = [key for key in METRICS if METRICS[key].better and any(key in row.qualities for row in rows)]
    axes = [axis for axis in AXES if any(axis in row.costs for row in rows)]
    index = {id(row): position for position, row in enumerate(rows)}

    def placed(place: Place) -> list[Any]:
        by = index[id(place.by)] if place.by else None
        return [index[id(place.entrant)], place.standing, by]

    own = {shown.technique.id: on for shown, on in atlas.on(view.bed)}
    return {
        "title": view.bed.title, "scale": view.bed.scale, "basis": atlas.seeds(view.bed), "metric": view.metric,
        "metrics": keys, "axes": axes, "rows": [entry(row, own.get(row.id or "")) for row in rows],
        "standings": {f"{key} {axis}": [placed(each) for each in atlas.ranked(view.bed, key, axis)]
                      for key in keys for axis in axes},
    }  # fmt: skip


def entry(row: Entrant, on: OnBed | None) -> dict[str, Any]:
    """A row; one of a technique also says how it stands against its control, and where its samples are."""
    found: dict[str, Any] = {
        "id": row.id, "name": row.name, "cell": row.cell, "record": row.record,
        "qualities": {key: number(value) for key, value in row.qualities.items()},
        "costs": {key: number(value) for key, value in row.costs.items()},
    }  # fmt: skip
    if on:
        found["gaps"] = {axis: gap(each) for axis, each in on.at_equal.items() if each}
        picture = on.pictures[0][1]
        if picture:
            found["picture"] = {
                "src": picture.path,
                "width": picture.width,
                "height": picture.height,
                "alt": picture.alt,
            }
        if on.outdated:
            found["stale"] = on.outdated[0]
    return found


def gap(difference: Difference) -> dict[str, Any]:
    """A paired difference with its word."""
    return number(difference.number) | {"word": difference.word, "metric": difference.key}


def number(found: Number) -> dict[str, Any]:
    """A number as it is drawn and as it is written."""
    ends = {"low": found.low, "high": found.high} if found.bounded else {}
    interval = {"interval": found.interval} if found.interval else {}
    return {"value": found.value, "text": found.text, "basis": found.basis, **ends, **interval}
