"""The sample grid of a record: the same seeds and labels for every technique of a bed."""

import io

import torch
from PIL import Image
from torch import Tensor

from flows.cell import BLOCK, Spec, Workplace, deployed, wanted_images
from methods.core import run

ROWS = 8
"""Rows of a sample grid; a column per class."""
SHOWN = 2 * BLOCK**2 - BLOCK
"""The first seed of a sample grid, beyond those of any block that is measured."""


def picture(spec: Spec, place: Workplace) -> bytes:
    """A PNG with a column per class and eight rows, from the first training seed."""
    labels = torch.arange(spec.bed.classes).repeat(ROWS)
    ready = deployed(spec, spec.train_seeds[0], place)
    wanted = wanted_images(spec, labels)
    parts = [
        run.generate(
            spec.recipe, ready, labels[rows], (SHOWN + rows).tolist(), None if wanted is None else wanted[rows]
        )
        for rows in torch.arange(len(labels)).split(spec.bed.batch)
    ]
    return png(torch.cat(parts), spec.bed.classes)


def png(drawn: Tensor, columns: int) -> bytes:
    """Images in [-1, 1] as one PNG, in rows of `columns` with a pixel between."""
    pixels = ((drawn.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    padded = torch.nn.functional.pad(pixels, (0, 1, 0, 1), value=255)
    n, c, h, w = padded.shape
    sheet = (
        padded.reshape(n // columns, columns, c, h, w).permute(0, 3, 1, 4, 2).reshape(n // columns * h, columns * w, c)
    )
    array = sheet[:-1, :-1].numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if c == 1 else array).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
