"""What the catalog is made of. Every model is frozen and refuses fields it does not know."""

from importlib import import_module
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    PrivateAttr,
    StrictBool,
    StrictFloat,
    StrictInt,
    StringConstraints,
    model_validator,
)

from catalog.reading import CatalogError, absent

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
Text = Annotated[str, StringConstraints(min_length=1)]
Number = StrictInt | StrictFloat
Status = Literal["verified", "unverified"]
Scale = Literal["toy", "reduced", "paper"]
Axis = Literal["evaluations", "macs", "parameters", "bytes", "latency", "memory", "training"]
Training = Literal[
    "net",
    "process",
    "parameterization",
    "times",
    "weight",
    "coupling",
    "loss",
    "label_dropout",
    "average",
    "space",
]
Sampling = Literal["start", "guidance", "grid", "sampler", "steps", "precision", "control"]
RecipeField = Literal[Training, Sampling, "phases", "transforms", "fit"]
Distance = Literal["fd", "kid", "precision", "recall", "density", "coverage", "w2", "sliced_w2", "mmd"]
Adapted = Literal["fd_new", "fd_old", "preferred", "edges"]
Quality = Literal[Distance, Adapted, "accuracy", "fidelity", "histogram", "nearest", "off_manifold"]
Cost = Literal[
    "evaluations", "sequential_calls", "macs", "parameters", "bytes", "training_images", "training_macs",
    "one_off_images", "one_off_macs",
]  # fmt: skip
Metric = Literal[Quality, Cost]


class Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class Paper(Entry):
    title: Text
    authors: Text
    year: int
    arxiv: Annotated[str, StringConstraints(pattern=r"^\d{4}\.\d{4,5}$")] | None = None
    venue: Text | None = None
    doi: Text | None = None
    note: Text | None = None


class Surveyed(Entry):
    """Where a survey places a technique; `section` is the id of a row of that survey's tree."""

    survey: Name
    section: Text
    status: Status
    note: Text | None = None


class Parameter(Entry):
    """A number the reader may choose; `unit` is `1` where it has none; `beds` are defaults of their own."""

    about: Text
    unit: Text
    default: Number
    min: Number | None = None
    max: Number | None = None
    beds: dict[Name, Number] = {}

    def value(self, given: Number) -> Number:
        """`given` in the type of the default; ValueError where it is not such a number or out of bounds."""
        kind = type(self.default)
        if kind(given) != given:
            raise ValueError(f"{given} is not a whole number")
        if self.min is not None and given < self.min:
            raise ValueError(f"{given} is below {self.min}")
        if self.max is not None and given > self.max:
            raise ValueError(f"{given} is above {self.max}")
        return kind(given)

    def on(self, bed: str | None) -> Number:
        """The default on a bed, `None` standing for every bed without its own."""
        return self.value(self.default if bed is None else self.beds.get(bed, self.default))

    @model_validator(mode="after")
    def _defaults_are_allowed(self) -> Self:
        for bed in (None, *self.beds):
            self.on(bed)
        return self


class Cell(Entry):
    """What to run: methods with parameters that are not default, and sampling steps if overridden.

    `trained` is the share of base training after which its weights are taken: 1 for all of it.
    """

    methods: dict[Name, dict[Name, Number]]
    steps: PositiveInt | None = None
    trained: Annotated[float, Field(gt=0, le=1)] = 1.0


class Expectation(Entry):
    """What a claim lets one expect of its statistic: exactly one bound."""

    at_most: float | None = None
    at_least: float | None = None
    equal: float | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("give exactly one of at_most, at_least, equal")
        return self


class Claim(Entry):
    """A paper's sentence, and what measuring it here would have to show, written before it is measured."""

    id: Name
    says: Text
    where: Text
    source: Text
    kind: Literal["ratio", "ordering", "equivalence", "existence", "absolute"]
    metric: Metric | None = None
    arm: Cell | None = None
    control: Cell | None = None
    statistic: Literal["difference", "ratio", "value"] | None = None
    expect: Expectation | None = None
    tolerance: Annotated[float, Field(ge=0)] = 0.0
    margin_reason: Text | None = None
    beds: tuple[Name, ...] = ()
    untested: Text | None = None

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Arm and control, those there are."""
        return tuple(cell for cell in (self.arm, self.control) if cell)

    @model_validator(mode="after")
    def _can_be_tested(self) -> Self:
        needed = ("metric", "arm", "statistic", "expect", "margin_reason", "beds")
        missing = [field for field in needed if not getattr(self, field)]
        if self.untested is None and missing:
            raise ValueError(f"a claim without `untested` needs {', '.join(missing)}")
        if self.untested is None and (self.control is None) != (self.statistic == "value"):
            raise ValueError("a difference or a ratio needs a control, and a value has none")
        if self.expect and self.kind == "equivalence" and self.expect.equal is None:
            raise ValueError("an equivalence is expected to be equal")
        return self


class Technique(Entry):
    """A catalog entry, run by the function of the same id in `methods.<area>.<family>.<id>`."""

    id: Name
    name: Text
    area: Name
    family: Name
    status: Literal["runnable"]
    paper: Paper
    idea: Text
    equation: Text
    cost_axis: Annotated[tuple[Axis, ...], Field(min_length=1)]
    surveys: tuple[Surveyed, ...] = ()
    parameters: dict[Name, Parameter] = {}
    changes: Annotated[tuple[RecipeField, ...], Field(min_length=1)]
    steps: PositiveInt | None = None
    """The sampling steps it always takes; where they can be chosen, they are a parameter of that name."""
    retrains: StrictBool
    needs: tuple[Text, ...] = ()
    builds_on: dict[Name, dict[Name, Number]] = {}
    counters: Annotated[tuple[Name, ...], Field(min_length=1)]
    beds: Annotated[tuple[Name, ...], Field(min_length=1)]
    library: Text | None = None
    code: Annotated[str, StringConstraints(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    limits: Text
    small_scale: Text
    claims: Annotated[tuple[Claim, ...], Field(min_length=1)]

    @property
    def module(self) -> str:
        return f"methods.{self.area}.{self.family}.{self.id}"

    @property
    def default(self) -> Cell:
        """The cell the technique's page is about: itself, with its defaults, on what it builds on."""
        return Cell(methods={**self.builds_on, self.id: {}})

    @property
    def changes_training(self) -> bool:
        """Whether it changes base training."""
        return bool({*self.changes} & {*get_args(Training)})

    @property
    def control(self) -> Cell:
        """The default cell without the technique; the baseline for most."""
        return Cell(methods=self.builds_on)

    def cells(self, bed: str) -> list[Cell]:
        """What the page needs on a bed: default, control, then the arms and controls of claims tested."""
        claims = [claim for claim in self.claims if claim.untested is None and bed in claim.beds]
        cells = [self.default, self.control, *(cell for claim in claims for cell in claim.cells)]
        return [cell for index, cell in enumerate(cells) if cell not in cells[:index]]

    def resolve(self, params: dict[str, Number], bed: str | None = None) -> dict[str, Number]:
        """Every parameter's value: the default, the bed's own default, then `params`. Raises CatalogError."""
        for name, given in params.items():
            if name not in self.parameters:
                raise CatalogError(absent(f"parameter of {self.id}", name, self.parameters))
            try:
                self.parameters[name].value(given)
            except ValueError as wrong:
                raise CatalogError(f"{self.id}.{name}: {wrong}") from None
        return {name: p.value(params.get(name, p.on(bed))) for name, p in self.parameters.items()}

    def call(self, params: dict[str, Number], bed: str | None = None) -> Any:
        """The Method (Recipe -> Recipe) with these parameters; nothing before this imports `methods`."""
        return getattr(import_module(self.module), self.id)(**self.resolve(params, bed))


class Family(Entry):
    """`listed` counts the techniques of the literature gathered for the family, runnable here or not."""

    id: Name
    title: Text
    about: Text
    listed: PositiveInt


class Area(Entry):
    id: Name
    title: Text
    about: Text
    families: tuple[Family, ...]


class Taxonomy(Entry):
    areas: tuple[Area, ...]

    @property
    def folders(self) -> list[tuple[str, str]]:
        """(area, family), in order."""
        return [(area.id, family.id) for area in self.areas for family in area.families]


class Section(Entry):
    """A row of a survey's tree. `number` is the survey's own; `names` are methods as the survey prints them.

    `techniques`, the ids of ours that the survey verifiably places here, comes from the techniques' files.
    """

    id: Text
    number: Text | None = None
    title: Text
    status: Status
    names: tuple[Text, ...] = ()
    note: Text | None = None
    children: "tuple[Section, ...]" = ()
    _techniques: tuple[str, ...] = PrivateAttr(())

    @property
    def techniques(self) -> tuple[str, ...]:
        return self._techniques

    def rows(self) -> "list[Section]":
        """This row and all below it, top down."""
        return [self, *(row for child in self.children for row in child.rows())]


class Survey(Paper):
    key: Name
    sections: tuple[Section, ...]

    def rows(self) -> dict[str, Section]:
        """Every row of the tree by its id, top down."""
        return {row.id: row for section in self.sections for row in section.rows()}


class Seeds(Entry):
    """A block of samples for every sampling seed: all from one training seed, or each from its own."""

    train: Annotated[tuple[int, ...], Field(min_length=1)]
    sample: Annotated[tuple[int, ...], Field(min_length=1)]

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """(training seed, sampling seed) of every block."""
        train = self.train * len(self.sample) if len(self.train) == 1 else self.train
        return tuple(zip(train, self.sample, strict=True))

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if len(self.train) not in (1, len(self.sample)):
            raise ValueError("give one training seed, or one for every sampling seed")
        return self


class Network(Entry):
    """The U-Net of the bed: channels at full size, their multiple and the residual blocks of each level."""

    width: PositiveInt
    multipliers: tuple[PositiveInt, ...]
    blocks: PositiveInt


class Fit(Entry):
    """The training budget, the same for every technique; `warmup` is in iterations."""

    precision: Literal["float32", "bfloat16"] = "float32"
    iterations: PositiveInt
    batch: PositiveInt
    learning_rate: Annotated[float, Field(gt=0)]
    ema: Annotated[float, Field(ge=0, lt=1)]
    warmup: Annotated[int, Field(ge=0)]


class Augment(Entry):
    flip: StrictBool


class Features(Entry):
    """The frozen classifier in whose features quality is measured."""

    dimensions: PositiveInt
    epochs: PositiveInt


class Standing(Entry):
    """What a bed's baseline has beside the choices of every baseline."""

    methods: Annotated[tuple[Name, ...], Field(min_length=1)]
    why: Text


class Bed(Entry):
    """A test bed; `shape` is [channels, height, width] or [coordinates], `n` the samples of one seed.

    `scale` says how far it is from what papers report on; `batch` samples are drawn at a time. A bed whose denoiser is
    known exactly has no network, fit, augment or features. `baseline` names techniques that its baseline has from
    the start.
    """

    name: Name
    title: Text
    role: Text
    data: Text
    source: Text
    license: Text
    scale: Scale
    shape: tuple[PositiveInt, ...]
    classes: Annotated[int, Field(ge=0)]
    n: PositiveInt
    batch: PositiveInt
    seeds: Seeds
    network: Network | None = None
    fit: Fit | None = None
    augment: Augment | None = None
    features: Features | None = None
    baseline: Standing | None = None

    @property
    def stands_on(self) -> tuple[str, ...]:
        """The ids of the techniques that its baseline has from the start."""
        return self.baseline.methods if self.baseline else ()


class Choice(Entry):
    choice: Text
    why: Text


class Baseline(Entry):
    """The recipe everything is compared with; `curve` are the step counts at which it is published."""

    name: Text
    about: Text
    fair: Text
    recipe: dict[RecipeField, Choice]
    steps: PositiveInt
    curve: tuple[PositiveInt, ...]
