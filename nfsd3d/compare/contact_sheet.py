"""Contact sheets of a comparison: a row for each prompt and a column for each method."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nfsd3d.compare.jobs import write_jpeg

CELL = 128
LABELS = 110
HEAD = 34
MAX_BYTES = 700_000


def write_sheet(path: Path, prompts: Sequence[str], columns: Mapping[str, Mapping[str, Path]]) -> None:
    """Writes a JPEG of at most about 700 kB; ``columns`` maps a heading to the thumbnail's path by prompt.

    A thumbnail is a strip of square views, of which four are shown, two by two. Missing ones stay white.
    """
    size = (LABELS + CELL * len(columns), HEAD + CELL * len(prompts))
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for index, (heading, thumbnails) in enumerate(columns.items()):
        left = LABELS + index * CELL
        draw.multiline_text((left + 4, 3), textwrap.fill(heading, 20), "black", font)
        for row, prompt in enumerate(prompts):
            if prompt in thumbnails and thumbnails[prompt].exists():
                sheet.paste(_cell(thumbnails[prompt]), (left, HEAD + row * CELL))
    for row, prompt in enumerate(prompts):
        draw.multiline_text((4, HEAD + row * CELL + 8), textwrap.fill(prompt, 17), "black", font)
    for quality in (88, 80, 70, 60, 50):
        write_jpeg(path, np.asarray(sheet), quality)
        if path.stat().st_size <= MAX_BYTES:
            return


def _cell(path: Path) -> Image.Image:
    with Image.open(path) as strip:
        image = strip.convert("RGB")
    side = image.height
    count = image.width // side
    shown = [round(index * count / 4) for index in range(4)] if count >= 4 else list(range(count))
    cell = Image.new("RGB", (CELL, CELL), "white")
    half = CELL // 2
    for place, index in enumerate(shown):
        view = image.crop((index * side, 0, (index + 1) * side, side)).resize((half - 1, half - 1))
        cell.paste(view, (place % 2 * half, place // 2 * half))
    return cell
