"""Scikit-learn's handwritten digits: 1,797 real 8x8 images in ten classes, shipped inside the package.

Source: E. Alpaydin, C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI repository
(doi:10.24432/C50P49), the test half, as `sklearn.datasets.load_digits`. Licence: CC BY 4.0.
"""

import hashlib
from dataclasses import replace

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from methods.data import Images
from methods.data.files import digest

LEVELS = 16  # a pixel counts the ink in a 4x4 block: 0..16


def load() -> Images:
    """1,437 training and 360 held-out images; held out is every fifth of each class, shuffled by content."""
    flat, target = load_digits(return_X_y=True)
    images, labels = np.asarray(flat, np.uint8).reshape(-1, 8, 8), np.asarray(target, np.int64)
    held_out = every_fifth(images, labels)
    train, test = images[~held_out], images[held_out]
    return Images(
        name="digits",
        train=pixels(train),
        train_labels=torch.from_numpy(labels[~held_out]),
        held_out=pixels(test),
        held_out_labels=torch.from_numpy(labels[held_out]),
        classes=10,
        source=f"scikit-learn digits, sha256 {digest(train, test)}",
    )


def seven_of_ten() -> Images:
    """The same images, of which sevens, eights and nines are withheld."""
    images, withheld = load(), (7, 8, 9)
    return replace(images, name="adaptation", withheld=withheld, source=f"{images.source}, without {withheld} at first")


def every_fifth(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mask of every fifth image in the order (class, sha256 of the image): stratified, no randomness."""
    key = [(label, hashlib.sha256(image.tobytes()).digest()) for label, image in zip(labels, images, strict=True)]
    order = sorted(range(len(key)), key=key.__getitem__)
    mask = np.zeros(len(images), dtype=bool)
    mask[order[::5]] = True
    return mask


def pixels(images: np.ndarray) -> Tensor:
    """[n, 8, 8] ink counts to [n, 1, 8, 8] in [-1, 1]."""
    return torch.from_numpy(images)[:, None].float() * (2 / LEVELS) - 1
