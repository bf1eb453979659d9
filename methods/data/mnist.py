"""MNIST: 60,000 + 10,000 real handwritten digits, 28x28 padded to 32x32 with background.

Source: Y. LeCun, C. Cortes, C. Burges, the four idx files. Licence: CC BY-SA 3.0.
Files: looked for in $ATLAS_DATA/mnist, then data/mnist, compressed or not, in any order of the images; else
downloaded, and the compressed originals checked against their published sha256.
"""

import gzip
import math
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from methods.data import Images, MissingData
from methods.data.files import digest, download, locate

ADDRESS = "https://ossci-datasets.s3.amazonaws.com/mnist/"
PUBLISHED = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
SHAPES = {
    "train-images-idx3-ubyte": (60_000, 28, 28),
    "train-labels-idx1-ubyte": (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}


def load() -> Images:
    """All 60,000 training images; the 10,000 test images are held out."""
    folder = locate("mnist", complete) or download(
        "mnist", {ADDRESS + name: sha256 for name, sha256 in PUBLISHED.items()}, "the four MNIST idx files"
    )
    train, train_labels, test, test_labels = (read(folder, stem, shape) for stem, shape in SHAPES.items())
    return Images(
        name="mnist",
        train=pixels(train),
        train_labels=torch.from_numpy(train_labels.astype(np.int64)),
        held_out=pixels(test),
        held_out_labels=torch.from_numpy(test_labels.astype(np.int64)),
        classes=10,
        source=f"MNIST idx files, sha256 {digest(train, test)}",
    )


def complete(folder: Path) -> bool:
    return all((folder / stem).exists() or (folder / f"{stem}.gz").exists() for stem in SHAPES)


def read(folder: Path, stem: str, shape: tuple[int, ...]) -> np.ndarray:
    """One idx file: two zero bytes, type 8 (unsigned byte), number of axes, big-endian sizes, values."""
    plain = folder / stem
    content = plain.read_bytes() if plain.exists() else gzip.decompress((folder / f"{stem}.gz").read_bytes())
    header = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)
    if not content.startswith(header) or len(content) != len(header) + math.prod(shape):
        raise MissingData(f"Replace {stem} in {folder}: it is not the published MNIST file of shape {shape}.")
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


def pixels(images: np.ndarray) -> Tensor:
    """[n, 28, 28] bytes to [n, 1, 32, 32] in [-1, 1]."""
    return pad(torch.tensor(images)[:, None].float() / 127.5 - 1, (2, 2, 2, 2), value=-1.0)
