"""The feature extractor of the image metrics: one small classifier, trained once per bed and then frozen.

Its sha256 is part of the identity of every number computed in its features, none of which compares with
Inception FID.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from methods.data import Images
from methods.nets.classifier import Classifier

BATCH = 64
IMAGES_SEEN = 90_000
PEAK_RATE = 2e-3


def train_features(
    images: Images, dimensions: int = 64, epochs: int | None = None, seed: int = 0, device: str = "cpu"
) -> tuple[Classifier, float]:
    """The trained extractor, on the CPU, and its accuracy on the held-out images.

    `epochs` None: as many as show it 90,000 images, three at least. Deterministic on one
    machine and thread count.
    """
    count = len(images.train)
    epochs = epochs or max(3, math.ceil(IMAGES_SEEN / count))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Classifier(images.shape[0], images.shape[1], images.classes, dimensions).to(device)
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=PEAK_RATE)
    steps = epochs * math.ceil(count / BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / steps)
    train, labels = images.train.to(device), images.train_labels.to(device)
    for _ in range(epochs):
        for rows in torch.randperm(count, generator=rng).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(net(train[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    net.cpu().requires_grad_(False)
    _, classes = extract(net, images.held_out)
    return net, (classes == images.held_out_labels).double().mean().item()


@torch.no_grad()
def extract(
    net: Classifier, x: Float[Tensor, "n c h w"], batch: int = 512
) -> tuple[Float[Tensor, "n d"], Int[Tensor, "n"]]:
    """Features in double precision and the predicted class of each image."""
    features = torch.cat([net.features(part) for part in x.split(batch)])
    return features.double(), net.head(features).argmax(1)


def digest(net: Classifier) -> str:
    """sha256 over the weights, by name."""
    total = hashlib.sha256()
    for name, weight in sorted(net.state_dict().items()):
        total.update(name.encode())
        total.update(weight.contiguous().numpy().tobytes())
    return total.hexdigest()


def save(path: Path, net: Classifier, accuracy: float, settings: Mapping[str, Any] | None = None) -> None:
    """Write a safetensors file, atomically; sizes, accuracy and what it was trained on go to its metadata."""
    channels, size, _ = net.shape
    sizes = {"channels": channels, "size": size, "classes": net.classes, "dimensions": net.dimensions}
    note = {"accuracy": accuracy, "settings": settings, "sizes": sizes}
    temporary = path.with_name(f".{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(net.state_dict(), temporary, {"note": json.dumps(note, sort_keys=True)})
    temporary.replace(path)


def load(path: Path) -> tuple[Classifier, float]:
    """What `save` wrote: the frozen extractor and its accuracy."""
    with safe_open(path, framework="pt") as file:
        note = json.loads(file.metadata()["note"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    net = Classifier(**note["sizes"])
    net.load_state_dict(weights)
    return net.requires_grad_(False), note["accuracy"]
