"""Reads a checkpoint in the hub's folder format: configs as JSON, weights as safetensors, nothing that runs code.

`model_index.json` names the parts; the network's lie in `unet` or `transformer`, the scheduler's in `scheduler`, or,
as the first checkpoints of diffusers have it, all of them in one folder.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import httpx
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from huggingface_hub import snapshot_download
from torch import nn

from methods.baseline import baseline
from methods.checkpoints import dit2d, unet2d
from methods.checkpoints.dit2d import DiT2D
from methods.checkpoints.errors import Unusable
from methods.checkpoints.schedule import Schedule, schedule_of
from methods.checkpoints.unet2d import UNet2D
from methods.core.fit import Fit
from methods.core.models import Model, build_parts, device
from methods.core.recipe import Recipe
from methods.core.surgery import transformed

ARCHITECTURES = {
    "UNet2DModel": (UNet2D, unet2d.classes_of),
    "DiTTransformer2DModel": (DiT2D, dit2d.classes_of),
}
INDEX, CONFIG, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
WEIGHTS = "diffusion_pytorch_model*.safetensors"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A network that is trained, and what it was trained for: samples of a shape, of so many classes (0 for none)."""

    name: str
    kind: str
    net: nn.Module
    config: UNet2D | DiT2D
    schedule: Schedule
    shape: tuple[int, int, int]
    classes: int

    def recipe(self, steps: int) -> Recipe:
        """The baseline of this survey with this network and its schedule."""
        own = self.schedule
        return replace(
            baseline(self.config, Fit(1), steps),
            process=own.process,
            parameterization=own.parameterization,
            space=own.space,
        )

    def model(self, recipe: Recipe) -> Model:
        """The model as a recipe ships it: with the transforms that change its weights."""
        net = transformed(self.net, [transform for transform in recipe.transforms if transform.ships])
        starter, codec = recipe.start.build(self.shape, self.classes), recipe.space.build(self.shape, self.classes)
        model = Model(net, codec, starter, build_parts(recipe), self.shape)
        return model.to(device()).eval().requires_grad_(False)


def read(name: str) -> Checkpoint:
    """The checkpoint in a folder, or of the hub under `owner/name`. Raises Unusable."""
    configs = located(name, ["*.json"])
    part, kind = network_of(configs, name)
    weights = f"{part}/{WEIGHTS}" if part else WEIGHTS
    folder = located(name, ["*.json", weights])
    net = load(folder / part, kind, name)
    schedule = schedule_of(scheduler_of(folder, name))
    config_class, classes_of = ARCHITECTURES[kind]
    text, digest = json.dumps(settings(net.config), sort_keys=True), digest_of(folder.glob(weights))
    config = config_class.of(net, text, digest, schedule.process)
    side = net.config.sample_size
    if not side:
        raise Unusable(f"{name} does not say its sample_size in {CONFIG}.")
    height, width = (side, side) if isinstance(side, int) else side
    shape = (net.config.in_channels, height, width)
    adapted = config.adapted(net).eval().requires_grad_(False)
    return Checkpoint(name, kind, adapted, config, schedule, shape, classes_of(net))


def located(name: str, patterns: Sequence[str]) -> Path:
    """The folder of this name, or where the hub's files that match lie after they were fetched. Raises Unusable."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not HUB_ID.fullmatch(name):
        raise Unusable(f"There is no folder {name}; a model of the hub is named owner/name.")
    try:
        return Path(snapshot_download(name, allow_patterns=[*patterns]))
    except (OSError, ValueError, httpx.HTTPError) as error:
        why = str(error).strip().partition("\n")[0][:200].rstrip(".: ")
        raise Unusable(
            f"There is no folder {name}, and the hub did not give {name} ({why}): give a folder that holds it."
        ) from error


def network_of(folder: Path, name: str) -> tuple[str, str]:
    """The part of a checkpoint that is its network, "" for the folder itself, and its class. Raises Unusable."""
    index = read_config(folder / INDEX, name) if (folder / INDEX).exists() else {}
    named = {part: entry[1] for part, entry in index.items() if isinstance(entry, list) and entry[1]}
    if not index:
        named = {"": read_config(folder / CONFIG, name).get("_class_name")}
    found = [(part, kind) for part, kind in named.items() if kind in ARCHITECTURES]
    if not found:
        held = ", ".join(sorted(map(str, named.values())))
        raise Unusable(f"{name} holds {held}; networks known here are {' and '.join(ARCHITECTURES)}.")
    part, kind = found[0]
    return (part if (folder / part).is_dir() else ""), kind


def load(folder: Path, kind: str, name: str) -> Any:
    """The network as diffusers makes it, in float32. Raises Unusable."""
    if not any(folder.glob(WEIGHTS)):
        raise Unusable(
            f"{name} has no weights as safetensors, and pickles are not read, for they may run code: write it anew "
            "with diffusers' save_pretrained, and give that folder."
        )
    try:
        net, told = getattr(diffusers, kind).from_pretrained(
            folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True,
            torch_dtype=torch.float32,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:
        raise Unusable(f"The weights of {name} do not load: {' '.join(str(error).split())[:200]}") from error
    if told["missing_keys"]:
        raise Unusable(f"The weights of {name} are not whole: {told['missing_keys'][0]} is missing.")
    return net


def scheduler_of(folder: Path, name: str) -> Any:
    """The scheduler as diffusers makes it from its config. Raises Unusable."""
    path = folder / "scheduler" / SCHEDULER
    config = read_config(path if path.exists() else folder / SCHEDULER, name)
    known = getattr(diffusers, str(config.get("_class_name")), None)
    if not isinstance(known, type) or not issubclass(known, SchedulerMixin):
        raise Unusable(f"{name} has a scheduler {config.get('_class_name')!r}, which diffusers does not know.")
    return known.from_config(config)  # pyright: ignore[reportAttributeAccessIssue] - every scheduler has it


def read_config(path: Path, name: str) -> dict[str, Any]:
    """A config. Raises Unusable."""
    if not path.exists():
        raise Unusable(f"{name} has no {path.name}: it is not a checkpoint in the format of diffusers.")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise Unusable(f"{path} is not JSON: {error}") from error


def settings(config: Any) -> dict[str, Any]:
    """What a config says of the network, without where it came from."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def digest_of(files: Iterable[Path]) -> str:
    """Sixteen hex digits over the bytes of files, by their names."""
    digest = hashlib.sha256()
    for path in sorted(files):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
