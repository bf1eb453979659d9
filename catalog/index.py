"""The whole catalog, and the one naming of cells that records, runs and pages share."""

from dataclasses import dataclass
from hashlib import sha256

from catalog.models import Baseline, Bed, Cell, Number, Survey, Taxonomy, Technique
from catalog.reading import CatalogError, absent

ON_THE_WAY = (0.125, 0.25, 0.5)
"""The shares of base training at which quality is measured, beside its end."""


@dataclass(frozen=True)
class Catalog:
    """Everything known, by id; the techniques in the order of the taxonomy."""

    taxonomy: Taxonomy
    surveys: dict[str, Survey]
    beds: dict[str, Bed]
    baseline: Baseline
    techniques: dict[str, Technique]

    @property
    def digest(self) -> str:
        """Sixteen hex digits that change with anything the catalog says."""
        parts = [self.taxonomy, self.baseline, *self.surveys.values(), *self.beds.values(), *self.techniques.values()]
        return sha256("".join(part.model_dump_json() for part in parts).encode()).hexdigest()[:16]

    def technique(self, id: str) -> Technique:
        """The technique, or a CatalogError that suggests the nearest ids."""
        if id not in self.techniques:
            raise CatalogError(absent("technique", id, self.techniques))
        return self.techniques[id]

    def bed(self, name: str) -> Bed:
        """The bed, or a CatalogError that suggests the nearest names."""
        if name not in self.beds:
            raise CatalogError(absent("bed", name, self.beds))
        return self.beds[name]

    def resolve(self, cell: Cell, bed: str | None = None) -> dict[str, dict[str, Number]]:
        """The cell's methods, sorted, with the value of every parameter."""
        return {id: self.technique(id).resolve(params, bed) for id, params in sorted(cell.methods.items())}

    def steps(self, cell: Cell, bed: str | None = None) -> int:
        """The sampling steps a cell takes: its override, else its methods' choice, else the baseline's."""
        chosen = [
            int(params["steps"]) if "steps" in params else self.technique(id).steps
            for id, params in self.resolve(cell, bed).items()
            if "steps" in self.technique(id).changes
        ]
        return cell.steps or next(filter(None, chosen), self.baseline.steps)

    def canonical(self, cell: Cell, bed: str | None = None) -> Cell:
        """The cell with nothing in it that is default on the bed; cells that run the same become equal."""
        methods = {
            id: dict(sorted(params.items() - self.technique(id).resolve({}, bed).items()))
            for id, params in self.resolve(cell, bed).items()
        }
        given = self.bed(bed).stands_on if bed else ()
        methods = {id: params for id, params in methods.items() if params or id not in given}
        plain = Cell(methods=methods)
        steps = cell.steps if cell.steps != self.steps(plain, bed) else None
        return Cell(methods=methods, steps=steps, trained=cell.trained)

    def cells(self, id: str, bed: str) -> dict[str, Cell]:
        """The distinct cells a technique's page needs on a bed, by name, ordered as `Technique.cells`.

        One that changes base training also needs itself and its control on the way through it.
        """
        technique = self.technique(id)
        ends = (technique.default, technique.control) if technique.changes_training and self.bed(bed).network else ()
        on_the_way = [cell.model_copy(update={"trained": share}) for share in ON_THE_WAY for cell in ends]
        cells = [self.canonical(cell, bed) for cell in (*technique.cells(bed), *on_the_way)]
        return {cell_name(cell, self, bed): cell for cell in cells}


def cell_name(cell: Cell, catalog: Catalog, bed: str | None = None) -> str:
    """`baseline@10`, `ddim(eta=1.0)`, `dit+int8_dynamic`, `dit~0.25`: it names whatever is not default on the bed."""
    cell = catalog.canonical(cell, bed)
    methods = (
        id + (f"({','.join(f'{name}={value}' for name, value in sorted(params.items()))})" if params else "")
        for id, params in cell.methods.items()
    )
    steps, share = f"@{cell.steps}" if cell.steps else "", f"~{cell.trained:g}" if cell.trained < 1 else ""
    return ("+".join(methods) or "baseline") + steps + share
