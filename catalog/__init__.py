"""What the literature claims: techniques, surveys, test beds and the baseline, read from YAML and checked.

`load()` is the door. Nothing here imports `methods` before `Technique.call` is asked for a method.
"""

from catalog.index import ON_THE_WAY, Catalog, cell_name
from catalog.loading import load
from catalog.models import (
    Area,
    Baseline,
    Bed,
    Cell,
    Claim,
    Expectation,
    Family,
    Paper,
    Parameter,
    Scale,
    Section,
    Seeds,
    Survey,
    Surveyed,
    Taxonomy,
    Technique,
)
from catalog.reading import CatalogError

__all__ = [
    "ON_THE_WAY",
    "Area",
    "Baseline",
    "Bed",
    "Catalog",
    "CatalogError",
    "Cell",
    "Claim",
    "Expectation",
    "Family",
    "Paper",
    "Parameter",
    "Scale",
    "Section",
    "Seeds",
    "Survey",
    "Surveyed",
    "Taxonomy",
    "Technique",
    "cell_name",
    "load",
]
