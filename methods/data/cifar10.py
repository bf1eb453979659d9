"""CIFAR-10: 50,000 + 10,000 real 32x32 colour images in ten classes.

Source: A. Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images; published without an
explicit licence, for research. Files: the parquet files of the public hub dataset (columns `img`, `label`) in
$ATLAS_DATA/cifar10, then data/cifar10; or the author's binary archive there; else that archive is downloaded
and checked. Copies with JPEG images exist: `source` says so, and
results on them are never held against a paper.
"""

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from methods.data import Images, MissingData
from methods.data.files import digest, download, locate

ARCHIVE = "cifar-10-binary.tar.gz"
ADDRESS = "https://www.cs.toronto.edu/~kriz/"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
WANTED = f"the parquet files train-*.parquet and test-*.parquet of CIFAR-10, or {ARCHIVE},"
COUNTS = {"train": 50_000, "test": 10_000}


def load() -> Images:
    """All 50,000 training images; the 10,000 test images are held out."""
    folder = locate("cifar10", complete) or download("cifar10", {ADDRESS + ARCHIVE: SHA256}, WANTED)
    read = read_parquet if has_parquet(folder) else read_archive
    train, train_labels, copy = read(folder, "train")
    test, test_labels, _ = read(folder, "test")
    return Images(
        name="cifar10",
        train=pixels(train),
        train_labels=torch.from_numpy(train_labels),
        held_out=pixels(test),
        held_out_labels=torch.from_numpy(test_labels),
        classes=10,
        source=f"CIFAR-10 {copy}, sha256 {digest(train, test)}",
    )


def has_parquet(folder: Path) -> bool:
    return all(any(folder.glob(f"{split}-*.parquet")) for split in COUNTS)


def complete(folder: Path) -> bool:
    return has_parquet(folder) or (folder / ARCHIVE).exists()


def read_parquet(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray, str]:
    """Images [n, 32, 32, 3] in bytes, labels [n], and which copy it is."""
    import pyarrow.parquet  # these two take half a second to import, and only this bed needs them
    from PIL import Image

    tables = [pyarrow.parquet.read_table(path) for path in sorted(folder.glob(f"{split}-*.parquet"))]
    rows = [row for table in tables for row in table["img"].to_pylist()]
    encoded = [row["bytes"] if isinstance(row, dict) else row for row in rows]
    labels = np.concatenate([table["label"].to_numpy() for table in tables]).astype(np.int64)
    images = np.stack([np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) for image in encoded])
    require(images, folder, split)
    lossy = encoded[0].startswith(b"\xff\xd8")
    return images, labels, "parquet files, JPEG-recompressed copy" if lossy else "parquet files, lossless"


def read_archive(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray, str]:
    """The same from the author's archive: records of one label byte and 3 x 32 x 32 pixel bytes."""
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if split == "train" else ["test_batch.bin"]
    with tarfile.open(folder / ARCHIVE) as archive:
        parts = [archive.extractfile(f"cifar-10-batches-bin/{name}") for name in names]
        content = b"".join(part.read() for part in parts if part)
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    images = np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    require(images, folder, split)
    return images, records[:, 0].astype(np.int64), "binary archive, lossless"


def require(images: np.ndarray, folder: Path, split: str) -> None:
    if images.shape != (COUNTS[split], 32, 32, 3):
        raise MissingData(f"Put {WANTED} into {folder}: the {split} images there have shape {images.shape}.")


def pixels(images: np.ndarray) -> Tensor:
    """[n, 32, 32, 3] bytes to [n, 3, 32, 32] in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
