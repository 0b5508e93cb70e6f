"""Contact sheets of a comparison: small views of each result, one row per prompt and one column per method."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image as PIL

from nfsd3d.visualize.image_grid import Image, grid, write_jpeg

CELL = 128
"""Pixels per side of a result."""
MAX_BYTES = 700_000


def write_sheet(path: Path, prompts: Sequence[str], columns: Mapping[str, Mapping[str, Path]]) -> None:
    """Writes a JPEG of at most about 700 kB; ``columns`` maps each heading to the image file of each prompt.

    A file is a strip of square views, of which four are shown, two by two. Missing results stay white.
    """
    rows = [[_cell(images.get(prompt)) for images in columns.values()] for prompt in prompts]
    sheet = grid(rows, column_labels=list(columns), row_labels=prompts, cell=(CELL, CELL))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_jpeg(path, sheet, MAX_BYTES)


def _cell(path: Path | None) -> Image | None:
    if path is None or not path.exists():
        return None
    with PIL.open(path) as strip:
        image = strip.convert("RGB")
    side, size = image.height, CELL // 2 - 1
    count = image.width // side
    shown = [round(index * count / 4) for index in range(4)] if count >= 4 else range(count)
    views = [np.asarray(image.crop((i * side, 0, (i + 1) * side, side)).resize((size, size))) for i in shown]
    return grid([views[:2], views[2:]], gap=1)
