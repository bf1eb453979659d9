"""What every driver runs: a cell is trained, compressed and sampled here, and evaluated in `flows.score`.

Each step leaves a file that says what it was made from (a fingerprint of recipe, code, data and seed); a step whose
file is there and still true is not done again, so a killed run resumes, and cells that share a training share its file.
Nothing here knows Prefect, DVC or MLflow.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from catalog import ON_THE_WAY, Bed, Catalog, Cell, cell_name
from flows.home import SETTINGS
from flows.records import Damaged, Unwritten, read_json, write_bytes, write_json
from flows.store import Store
from methods import data
from methods.baseline import baseline
from methods.core import models, run
from methods.core.activation import tallied
from methods.core.calibration import Report
from methods.core.data import TrainingSet
from methods.core.denoiser import Mixture
from methods.core.fit import Fit
from methods.core.identity import recipe_fingerprint, shipped_fingerprint, training_fingerprint
from methods.core.learning import quiet
from methods.core.recipe import Conflict, Method, Recipe, compose
from methods.core.start import FromNoise
from methods.nets.unet import UNetConfig

Find = Callable[[Path, str], Path | None]
"""Whether a path, or one beside it, holds what has a fingerprint."""
MADE = "made"
"""The folder that says, by fingerprint, where a file is: cells that are given the same share it."""
FOR_FITTED = Fit(1000)
"""The budget on a bed where nothing is trained: what is fitted to the exact denoiser takes its share of it."""
BLOCK = 1_000_000
"""Sample i of the block with seed s has the seed s * BLOCK + i."""


@dataclass(frozen=True)
class Spec:
    """A cell on a bed with its seeds: what a result depends on besides the code. `budget` scales training.

    `blocks` are pairs of a training and a sampling seed. Every cell of a bed has the same ones, so that two cells are
    compared block by block: what both share, noise and order of the data, cancels.
    """

    catalog: Catalog
    bed: Bed
    cell: Cell
    blocks: tuple[tuple[int, int], ...]
    budget: float = 1.0
    fidelity: bool = True
    """Whether to draw the many-step reference that fidelity is measured against, and to count what preparation costs;
    a quick look does neither."""

    @property
    def train_seeds(self) -> tuple[int, ...]:
        """The training seeds, each once."""
        return tuple(dict.fromkeys(seed for seed, _ in self.blocks))

    @cached_property
    def name(self) -> str:
        return cell_name(self.cell, self.catalog, self.bed.name)

    def methods(self) -> list[Method]:
        """The cell's techniques as named edits."""
        return self.edits(self.cell.methods)

    def edits(self, methods: Mapping[str, dict[str, Any]]) -> list[Method]:
        """Techniques, with their parameters, as named edits."""
        return [
            replace(self.catalog.technique(id).call(params, self.bed.name), name=id) for id, params in methods.items()
        ]

    @cached_property
    def recipe(self) -> Recipe:
        """The baseline of the bed with the cell's methods. Raises Conflict."""
        recipe = compose(base_recipe(self), *self.methods())
        if self.bed.network is None:
            require_exact(recipe, self)
        return replace(recipe, steps=self.cell.steps) if self.cell.steps else recipe

    def of(self, cell: Cell) -> "Spec":
        """The same bed, seeds and budget for another cell."""
        return replace(self, cell=self.catalog.canonical(cell, self.bed.name))

    @cached_property
    def training(self) -> "Spec":
        """The cell reduced to the methods that change base training: it names the weights this cell starts from."""
        whole = training_fingerprint(self.recipe)
        kept = dict(self.cell.methods)
        for id in self.cell.methods:
            fewer = {name: params for name, params in kept.items() if name != id}
            if self._trained_by(fewer) == whole:
                kept = fewer
        return self.of(Cell(methods=kept, trained=self.cell.trained))

    def after(self, share: float) -> "Spec":
        """The same cell with the weights that this share of base training gives."""
        return replace(self, cell=self.cell.model_copy(update={"trained": share}))

    def _trained_by(self, methods: dict[str, dict[str, Any]]) -> str | None:
        """What these methods would train; None if one of them needs what is left out."""
        try:
            return training_fingerprint(replace(self, cell=Cell(methods=methods)).recipe)
        except Conflict:
            return None

    def context(self, seed: int) -> str:
        """What weights depend on besides the recipe: the data, and the seed of training."""
        return f"{source(self.bed.name)}{self.mirrored} seed {seed}{self.passed}"

    @property
    def mirrored(self) -> str:
        """That training sees the mirror images too, in words; empty if it does not."""
        return " mirrored" if flips(self.bed) else ""

    @property
    def passed(self) -> str:
        """How much of base training has passed, in words; empty for all of it."""
        return f" after {self.cell.trained:g}" if self.cell.trained < 1 else ""


def base_recipe(spec: Spec) -> Recipe:
    """The baseline for the bed's network and training budget, with what it has there from the start."""
    network, fit = spec.bed.network, spec.bed.fit
    if network is None or fit is None:
        return baseline(UNetConfig(), FOR_FITTED, spec.catalog.baseline.steps)
    plain = baseline(
        UNetConfig(network.width, network.multipliers, network.blocks),
        Fit(**fit.model_dump()).scaled(spec.budget),
        spec.catalog.baseline.steps,
    )
    return compose(plain, *spec.edits({id: {} for id in spec.bed.stands_on}))


def require_exact(recipe: Recipe, spec: Spec) -> None:
    """On a bed whose denoiser is known nothing is trained: raise Conflict for methods that want to change that."""
    plain = base_recipe(spec)
    exact = training_fingerprint(replace(recipe, process=plain.process, parameterization=plain.parameterization))
    if exact != training_fingerprint(plain) or recipe.phases or recipe.transforms or recipe.start != plain.start:
        raise Conflict(
            f"The bed {spec.bed.name} has an exact denoiser and no network: {spec.name} has nothing to change."
        )


@dataclass(frozen=True)
class Workplace:
    """Where intermediate files lie: weights, samples, scores. Deleting it loses time, not results.

    With a store, files are looked for there before they are made, and put there afterwards.
    """

    root: Path = Path("work")
    store: Store | None = Store(SETTINGS.store) if SETTINGS.store else None

    def path(self, spec: Spec, step: str, *parts: object, suffix: str = "safetensors") -> Path:
        """`<bed>/<step>/<cell>/<seeds>`, or `<bed>/<step>/<cell>` for what has no seeds of its own."""
        folder = self.root / spec.bed.name / step
        if not parts:
            return folder / f"{spec.name}.{suffix}"
        return folder / spec.name / f"{'-'.join(map(str, parts))}.{suffix}"

    def made(self, path: Path, fingerprint: str, make: Callable[[], None], find: Find) -> Path:
        """The file with this fingerprint: found, fetched, or made. Whoever else wants it meanwhile waits for it."""
        found = find(path, fingerprint)
        if found is not None:
            return found
        key = self.key(path, fingerprint)
        with self.turn(path, self.noted(path, fingerprint).with_suffix(".lock")):
            found = find(path, fingerprint)
            if found is None:
                found = self._fetched(path, key) or self._made(path, key, make)
                self.note(path, fingerprint)
        return found

    def noted(self, path: Path, fingerprint: str) -> Path:
        """Where it is noted what a file with this fingerprint is called."""
        return self.root / path.relative_to(self.root).parts[0] / MADE / fingerprint

    def note(self, path: Path, fingerprint: str) -> None:
        """Let the file be found by cells of another name that ask for the same."""
        noted = self.noted(path, fingerprint)
        write_bytes(noted, str(path.relative_to(noted.parents[1])).encode())

    @contextmanager
    def turn(self, path: Path, lock: Path) -> Iterator[None]:
        """Take turns with whoever makes the same file. Raises Unwritten where there is no room even for a lock."""
        held = FileLock(lock)
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            held.acquire()
        except OSError as error:
            raise Unwritten(path, error) from error
        try:
            yield
        finally:
            held.release()

    def _fetched(self, path: Path, key: str) -> Path | None:
        """The file as another machine made it."""
        if self.store is None or not self.store.fetch(f"{key}{path.suffix}", path):
            return None
        self.store.fetch(f"{key}.seconds.json", clock(path))
        return path

    def _made(self, path: Path, key: str, make: Callable[[], None]) -> Path:
        make()
        self.push(path, key)
        return path

    def key(self, path: Path, fingerprint: str) -> str:
        """What the store calls a file, but for its suffix."""
        bed, step, *_ = path.relative_to(self.root).parts
        return f"{bed}/{step}/{fingerprint}"

    def push(self, path: Path, key: str) -> None:
        """Put a file into the store, with the seconds it took."""
        if self.store is not None:
            self.store.push(path, f"{key}{path.suffix}")
            if clock(path).exists():
                self.store.push(clock(path), f"{key}.seconds.json")


@cache
def images(bed: str) -> Any:
    """The bed's data, read once."""
    return data.load(bed)


def source(bed: str) -> str:
    """What names the copy of a bed's data that is read here."""
    loaded = images(bed)
    return loaded.source if isinstance(loaded, data.Images) else loaded.name


def flips(bed: Bed) -> bool:
    """Whether training sees the mirror image of every image as well."""
    return bed.augment is not None and bed.augment.flip


def training_set(bed: Bed) -> TrainingSet:
    """What training on a bed is given, mirror images included where the bed asks for them."""
    return _training_set(bed.name, flips(bed))


@cache
def _training_set(bed: str, flip: bool) -> TrainingSet:
    loaded = images(bed)
    shown, labels = loaded.train, loaded.train_labels
    if flip:
        shown, labels = torch.cat([shown, shown.flip(-1)]), labels.repeat(2)
    return TrainingSet(shown, labels, loaded.classes, loaded.withheld)


def metadata(path: Path) -> dict[str, Any]:
    """What a file says about itself; empty if it is not there. Raises Damaged."""
    if not path.exists():
        return {}
    try:
        return models.read_note(path)
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise Damaged(path, "make it again") from error


def digest(tensors: Mapping[str, Tensor]) -> str:
    """What names the bytes of tensors: a file whose header is sound can still have lost a bit of what it holds."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def whole(path: Path) -> Path:
    """The file, read through: raises Damaged where its tensors are not those that were written."""
    noted = metadata(path).get("digest")
    if noted is not None:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if digest(tensors) != noted:
            raise Damaged(path, "make it again")
    return path


def find(path: Path, fingerprint: str) -> Path | None:
    """The file with this fingerprint: at `path`, or where the same was made under another name."""
    bed = path.parents[2]
    noted = bed / MADE / fingerprint
    for candidate in [path, *([bed / noted.read_text()] if noted.exists() else [])]:
        if metadata(candidate).get("fingerprint") == fingerprint:
            return candidate
    return None


def target(spec: Spec, step: str, place: Workplace, seed: int, block: int = 0) -> tuple[Path, str]:
    """The file that a step leaves, and the fingerprint of what it is made from."""
    context = spec.context(seed)
    match step:
        case "train":
            return place.path(spec.training, "train", seed), training_fingerprint(spec.recipe, context)
        case "compress":
            return place.path(spec, "ship", seed), shipped_fingerprint(spec.recipe, context)
        case _:
            labels = hashlib.sha256(block_labels(spec).numpy().tobytes()).hexdigest()[:16]
            size = f"{context} block {block} n {spec.bed.n} by {spec.bed.batch} labels {labels}"
            return place.path(spec, "sample", seed, block), recipe_fingerprint(spec.recipe, size)


def is_made(spec: Spec, step: str, place: Workplace, seed: int, block: int = 0) -> bool:
    """Whether what a step makes is there."""
    return find(*target(spec, step, place, seed, block)) is not None


def train(spec: Spec, seed: int, place: Workplace, report: Report = quiet) -> Path:
    """Train the weights the cell starts from, or find them. A training leaves those on the way to its end as well.

    Raises Conflict on a bed with an exact denoiser.
    """
    require_network(spec)
    path, fingerprint = target(spec, "train", place, seed)

    def make() -> None:
        if not spec.passed:
            return train_anew(spec, seed, place, report)
        whole = train(spec.after(1.0), seed, place, report)
        with FileLock(whole.with_suffix(".lock")):
            if find(path, fingerprint) is None:  # it was made by somebody who left nothing on the way
                train_anew(spec, seed, place, report)

    return place.made(path, fingerprint, make, find)


def require_network(spec: Spec) -> None:
    """Raise Conflict where there are no weights to make."""
    if spec.bed.network is None:
        raise Conflict(
            f"On {spec.bed.name} nothing is trained: its denoiser is exact, and sampling asks for no weights."
        )


def train_anew(spec: Spec, seed: int, place: Workplace, report: Report) -> None:
    """Train, and write the weights of the end and of every share of the way that somebody may ask for."""
    curve, started = Curve(report), time.perf_counter()

    def write(share: float, model: models.Model, seen: int) -> None:
        path, fingerprint = target(spec.after(share), "train", place, seed)
        if share < 1 and find(path, fingerprint):  # left by one that was stopped later on the way
            return
        note = {"fingerprint": fingerprint, "images": seen, "counters": counters, "curve": curve.points}
        write_model(model, path, note)
        if share == 1:
            took(path, time.perf_counter() - started)
        else:  # it took no time of its own
            place.note(path, fingerprint)
            place.push(path, place.key(path, fingerprint))

    keep = {share: partial(write, share) for share in {*ON_THE_WAY, spec.cell.trained} - {1.0}}
    with tallied() as counters:
        model, seen = run.train(spec.training.recipe, training_set(spec.bed), seed, curve, keep)
    write(1.0, model, seen)


def compress(spec: Spec, seed: int, place: Workplace, report: Report = quiet) -> Path:
    """Make the weights that ship: fit the start, distil, prune, quantize. Without any of these, the trained ones do."""
    trained = train(spec, seed, place, report)
    recipe = spec.recipe
    if not compresses(spec):
        return trained
    path, fingerprint = target(spec, "compress", place, seed)

    def make() -> None:
        bed, started = spec.bed, time.perf_counter()
        base = models.load(spec.training.recipe, whole(trained), bed.shape, bed.classes, shipped=False)
        model = models.build(recipe, bed.shape, bed.classes, seed)
        model.net, model.codec, model.history = base.net, base.codec, base.history
        curve = Curve(report)
        with tallied() as counters:
            model, seen, shapes = run.compress(recipe, model, training_set(bed), seed, curve)
        note = {"fingerprint": fingerprint, "images": seen, "counters": counters, "curve": curve.points}
        write_model(model, path, note, shapes)
        took(path, time.perf_counter() - started)

    return place.made(path, fingerprint, make, find)


def write_model(
    model: models.Model, path: Path, note: dict[str, Any], shapes: dict[str, list[int]] | None = None
) -> None:
    """Write weights whole or not at all, with a digest of them in the note. Raises Unwritten."""
    try:
        models.save(model, path, {**note, "digest": digest(models.flatten(model))}, shapes)
    except (OSError, SafetensorError) as error:
        raise Unwritten(path, error) from error


def compresses(spec: Spec) -> bool:
    """Whether anything lies between training and shipping."""
    recipe = spec.recipe
    return bool(
        recipe.phases or recipe.fitted or recipe.start != FromNoise() or any(t.ships for t in recipe.transforms)
    )


def deployed(spec: Spec, seed: int, place: Workplace, report: Report = quiet) -> run.Deployed:
    """The cell ready to sample, from the files that earlier steps left."""
    if spec.bed.network is None:
        mixture = images(spec.bed.name)
        exact = Mixture(mixture.means, mixture.stds, mixture.weights, spec.recipe.process)
        return run.deploy_exact(spec.recipe, exact, mixture.sample(spec.bed.n, torch.Generator().manual_seed(seed)))
    path = compress(spec, seed, place, report)
    shipped = path.parents[1].name == "ship"
    model = models.load(spec.recipe, whole(path), spec.bed.shape, spec.bed.classes, shipped=shipped)
    return run.deploy(spec.recipe, model)


def sample(spec: Spec, seed: int, block: int, place: Workplace, report: Report = quiet) -> Path:
    """Draw one block of n samples: from the weights of a training seed, with a sampling seed."""
    path, fingerprint = target(spec, "sample", place, seed, block)

    def make() -> None:
        ready = deployed(spec, seed, place, report)
        labels = block_labels(spec)
        wanted = wanted_images(spec, labels)
        drawn: list[Tensor] = []
        started = time.perf_counter()
        with tallied() as counters:
            for first in range(0, spec.bed.n, spec.bed.batch):
                part = labels[first : first + spec.bed.batch]
                seeds = range(block * BLOCK + first, block * BLOCK + first + len(part))
                like = None if wanted is None else wanted[first : first + spec.bed.batch]
                drawn.append(run.generate(spec.recipe, ready, part, seeds, like))
                report(f"{spec.name}, block {block}", first + len(part), spec.bed.n, 0.0)
        samples = torch.cat(drawn)
        note = {
            "fingerprint": fingerprint, "counters": counters, "evaluations": ready.network.rows / spec.bed.n,
            "sequential": ready.network.calls / len(drawn),
        }  # fmt: skip
        write_samples(samples.clamp(-1, 1) if samples.ndim == 4 else samples, path, note)
        took(path, time.perf_counter() - started)

    return place.made(path, fingerprint, make, find)


def block_labels(spec: Spec) -> Tensor:
    """The labels every block asks for: those of n training images, each class with its share of them."""
    if spec.bed.network is None:
        return torch.zeros(spec.bed.n, dtype=torch.long)
    labels = images(spec.bed.name).train_labels
    by_class = labels.argsort(stable=True)
    return labels[by_class[torch.arange(spec.bed.n) * len(labels) // spec.bed.n].sort().values]


def wanted_images(spec: Spec, labels: Tensor) -> Tensor | None:
    """For every label a held-out image of its class, in turn, that a control may describe; None in the plane."""
    if spec.bed.network is None:
        return None
    loaded = images(spec.bed.name)
    rows = torch.empty_like(labels)
    for label in labels.unique():
        of_class, asked = (loaded.held_out_labels == label).nonzero()[:, 0], labels == label
        rows[asked] = of_class[torch.arange(int(asked.sum())) % len(of_class)]
    return loaded.held_out[rows]


def write_samples(samples: Tensor, path: Path, note: dict[str, Any]) -> None:
    """Write a block whole or not at all, with a digest of it in the note. Raises Unwritten."""
    tensors = {"samples": samples}
    write_bytes(path, save(tensors, {"note": json.dumps({**note, "digest": digest(tensors)}, sort_keys=True)}))


def read_samples(path: Path) -> Tensor:
    """The samples of a block. Raises Damaged."""
    with safe_open(whole(path), "pt") as file:
        return file.get_tensor("samples")


def took(path: Path, seconds: float) -> None:
    """Remember how long a file took to make, apart from it: it depends on the machine, the file does not."""
    write_json(clock(path), {"seconds": round(seconds, 3)})


def seconds(path: Path) -> float:
    """How long a file took to make."""
    noted = clock(path)
    return read_json(noted)["seconds"] if noted.exists() else 0.0


def clock(path: Path) -> Path:
    """Where the seconds are noted that a file took."""
    step, name = path.parents[1], path.parent.name
    return step.parent / "seconds" / step.name / name / f"{path.stem}.json"


class Curve:
    """Passes progress on and keeps the losses on the way."""

    def __init__(self, report: Callable[[str, int, int, float], None]) -> None:
        self.report = report
        self.points: list[list[Any]] = []

    def __call__(self, what: str, done: int, total: int, loss: float) -> None:
        self.points.append([what, done, round(loss, 6)])
        self.report(what, done, total, loss)
