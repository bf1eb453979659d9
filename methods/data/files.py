"""Where published files are looked for, how they are fetched, and how a copy is identified."""

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from methods.data import MissingData

CHECKOUT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 30


def folders(name: str) -> list[Path]:
    """The folders that may hold data set `name`, in the order they are tried: a run's own may be a passing one."""
    roots = [CHECKOUT / "data", Path("data")]
    if "ATLAS_DATA" in os.environ:
        roots.insert(0, Path(os.environ["ATLAS_DATA"]))
    return [root / name for root in roots]


def locate(name: str, accepts: Callable[[Path], bool]) -> Path | None:
    """The first folder of `name` whose contents `accepts`, or None."""
    return next((folder for folder in folders(name) if folder.is_dir() and accepts(folder)), None)


def download(name: str, published: dict[str, str], wanted: str) -> Path:
    """Fetch files into the first folder of `name`, each checked against its sha256, and return the folder.

    `published` maps address to sha256; `wanted` says in words which files a user may provide instead.
    """
    folder = folders(name)[0]
    for url, sha256 in published.items():
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
                content = answer.read()
        except (urllib.error.URLError, TimeoutError) as error:
            raise MissingData(f"Put {wanted} into {folder} (downloading {url} failed: {error}).") from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise MissingData(f"Put {wanted} into {folder} ({url} no longer serves the published file).")
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{url.rsplit('/', 1)[1]}.part"
        partial.write_bytes(content)
        partial.rename(partial.with_suffix(""))
    return folder


def digest(*parts: Sequence[np.ndarray] | np.ndarray) -> str:
    """sha256 of the image bytes, each part (training, held out) sorted: the order of images is no matter."""
    total = hashlib.sha256()
    for images in parts:
        for pixels in sorted(image.tobytes() for image in images):
            total.update(pixels)
    return total.hexdigest()
