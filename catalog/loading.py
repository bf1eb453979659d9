"""Reads the files of the catalog and checks what they say about each other."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from catalog.index import Catalog
from catalog.models import Baseline, Bed, Cell, Survey, Taxonomy, Technique
from catalog.reading import CatalogError, Document, Location, absent, read


def load(root: Path | None = None, *, again: bool = False) -> Catalog:
    """Reads and checks the catalog in `root`, by default this folder; once, unless `again`. Raises CatalogError."""
    if again:
        _load.cache_clear()
    return _load((root or Path(__file__).parent).resolve())


@cache
def _load(root: Path) -> Catalog:
    paths = sorted(path.relative_to(root) for path in root.rglob("*.yaml"))
    files = {path: read(root / path, f"{root.name}/{path}") for path in paths}
    taxonomy = files.pop(Path("taxonomy.yaml")).parse(Taxonomy)
    baseline = files.pop(Path("baseline.yaml")).parse(Baseline)
    shelves = {"surveys": {}, "beds": {}}
    for path in [path for path in files if path.parts[0] in shelves]:
        shelves[path.parts[0]][path.stem] = files.pop(path)
    surveys = {key: source.parse(Survey) for key, source in shelves["surveys"].items()}
    beds = {name: source.parse(Bed) for name, source in shelves["beds"].items()}
    sources, techniques = {}, {}
    for path, source in files.items():
        technique = source.parse(Technique)
        if technique.id in techniques:
            raise source.error(("id",), f"{technique.id!r} is also the id in {sources[technique.id].path}")
        _check_place(technique, source, path, taxonomy)
        sources[technique.id], techniques[technique.id] = source, technique

    for key, survey in surveys.items():
        _check_survey(survey, shelves["surveys"][key], key)
    for name, bed in beds.items():
        if bed.name != name:
            raise shelves["beds"][name].error(("name",), f"{bed.name!r} differs from the file's name")
    ordered = sorted(techniques.values(), key=lambda t: (taxonomy.folders.index((t.area, t.family)), t.id))
    catalog = Catalog(taxonomy, surveys, beds, baseline, {technique.id: technique for technique in ordered})
    for name, bed in beds.items():
        for index, id in enumerate(bed.stands_on):
            if id not in techniques:
                raise shelves["beds"][name].error(("baseline", "methods", index), absent("technique", id, techniques))
    for id, technique in catalog.techniques.items():
        _check_technique(technique, sources[id], catalog)
        _enter(technique, catalog)
    return catalog


def _check_place(technique: Technique, source: Document, path: Path, taxonomy: Taxonomy) -> None:
    place = Path(technique.area, technique.family, f"{technique.id}.yaml")
    if path != place:
        wrong = next(field for field in ("area", "family", "id") if getattr(technique, field) not in path.parts)
        raise source.error((wrong,), f"the file belongs in {place}")
    if technique.area not in (areas := [area.id for area in taxonomy.areas]):
        raise source.error(("area",), absent("area", technique.area, areas))
    if (technique.area, technique.family) not in taxonomy.folders:
        families = [family for area, family in taxonomy.folders if area == technique.area]
        raise source.error(("family",), absent(f"family of {technique.area}", technique.family, families))


def _check_survey(survey: Survey, source: Document, key: str) -> None:
    if survey.key != key:
        raise source.error(("key",), f"{survey.key!r} differs from the file's name")
    ids = [row.id for section in survey.sections for row in section.rows()]
    for id in ids:
        if ids.count(id) > 1:
            raise source.error(("sections",), f"the row id {id!r} stands more than once")


def _check_technique(technique: Technique, source: Document, catalog: Catalog) -> None:
    def among(location: Location, kind: str, name: str, options: Iterable[str]) -> None:
        if name not in options:
            raise source.error(location, absent(kind, name, options))

    def runs(location: Location, cell: Cell) -> None:
        for id, params in cell.methods.items():
            try:
                catalog.technique(id).resolve(params)
            except CatalogError as wrong:
                raise source.error((*location, id), str(wrong)) from None

    for index, place in enumerate(technique.surveys):
        among(("surveys", index, "survey"), "survey", place.survey, catalog.surveys)
        rows = catalog.surveys[place.survey].rows()
        among(("surveys", index, "section"), f"section of {place.survey}", place.section, rows)
        if place.status == "verified" != rows[place.section].status:
            raise source.error(("surveys", index, "status"), f"the row {place.section!r} is not")
    for index, bed in enumerate(technique.beds):
        among(("beds", index), "bed", bed, catalog.beds)
    for name, parameter in technique.parameters.items():
        for bed in parameter.beds:
            among(("parameters", name, "beds", bed), "bed", bed, catalog.beds)
    runs(("builds_on",), technique.control)
    seen = set()
    for index, claim in enumerate(technique.claims):
        if claim.id in seen:
            raise source.error(("claims", index, "id"), f"{claim.id!r} is the id of an earlier claim")
        seen.add(claim.id)
        for position, bed in enumerate(claim.beds):
            among(("claims", index, "beds", position), "bed of this technique", bed, technique.beds)
        for field, cell in (("arm", claim.arm), ("control", claim.control)):
            if cell:
                runs(("claims", index, field, "methods"), cell)


def _enter(technique: Technique, catalog: Catalog) -> None:
    """Writes the technique into the rows of the surveys that verifiably have it."""
    for place in technique.surveys:
        if place.status == "verified":
            row = catalog.surveys[place.survey].rows()[place.section]
            row._techniques = (*row.techniques, technique.id)
