"""Image grids (contact sheets): images of one size in rows and columns, with optional labels, as PNG or JPEG files."""

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PIL
from PIL import ImageDraw, ImageFont

from nfsd3d.runs.files import write_bytes

Image = NDArray[np.uint8]
"""[H,W,3]."""

HEADER, MARGIN = 34, 110
"""Pixels above the grid for the columns' labels, and left of it for those of the rows."""

FONT_SIZE, CHARACTER = 11, 6.4
"""Pixels: the labels' font, and the mean width of its characters, by which labels are wrapped."""

QUALITIES = (90, 80, 70, 60, 50)
"""JPEG qualities, tried in turn until the file is small enough."""


def grid(
    rows: Sequence[Sequence[Image | None]],
    *,
    column_labels: Sequence[str] = (),
    row_labels: Sequence[str] = (),
    gap: int = 0,
    cell: tuple[int, int] | None = None,
) -> Image:
    """An image of ``rows`` of images [h,w,3], on white, with ``gap`` pixels to the right of and below each.

    None leaves a cell white, as does a row with fewer images than the longest. ``cell`` is the height and width of a
    cell; by default that of the first image.
    """
    if cell is None:
        height, width, _ = next(image for row in rows for image in row if image is not None).shape
        cell = height, width
    height, width = cell[0] + gap, cell[1] + gap
    top, left = HEADER if column_labels else 0, MARGIN if row_labels else 0
    columns = max(len(column_labels), *(len(row) for row in rows))
    canvas = np.full((top + height * len(rows), left + width * columns, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            if image is not None:
                y, x = top + i * height, left + j * width
                canvas[y : y + image.shape[0], x : x + image.shape[1]] = image
    if not (column_labels or row_labels):
        return canvas
    labelled = PIL.fromarray(canvas)
    draw, font = ImageDraw.Draw(labelled), ImageFont.load_default(FONT_SIZE)
    for j, label in enumerate(column_labels):
        text = textwrap.fill(label, int(width / CHARACTER))
        draw.multiline_text((left + j * width + 4, 3), text, "black", font)
    for i, label in enumerate(row_labels):
        text = textwrap.fill(label, int(MARGIN / CHARACTER))
        draw.multiline_text((4, top + i * height + 8), text, "black", font)
    return np.asarray(labelled)


def in_rows(images: Sequence[Image], per_row: int) -> list[Sequence[Image]]:
    """``images`` in rows of ``per_row``; the last one may be shorter."""
    return [images[first : first + per_row] for first in range(0, len(images), per_row)]


def square(images: Sequence[Image]) -> Image:
    """A grid of about as many rows as columns."""
    return grid(in_rows(images, math.ceil(math.sqrt(len(images)))))


def write_png(path: Path, image: Image) -> None:
    """Writes a PNG atomically."""
    # Not to the file: where a disk is full, imageio (2.38) may print another traceback when its object is deleted.
    write_bytes(path, imageio.imwrite("<bytes>", image, extension=".png"))


def write_jpeg(path: Path, image: Image, max_bytes: int | None = None) -> None:
    """Writes a JPEG atomically, of the first of :data:`QUALITIES` at which it has at most ``max_bytes``.

    If none of them is small enough, the last one is written.
    """
    for quality in QUALITIES:
        stream = io.BytesIO()
        PIL.fromarray(image).save(stream, "JPEG", quality=quality)
        if max_bytes is None or stream.tell() <= max_bytes:
            break
    write_bytes(path, stream.getvalue())
