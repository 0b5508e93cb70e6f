"""What the pages of a run and of a comparison are made of: the page itself, tables, charts, images within it."""

import base64
import io
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image as PIL

from nfsd3d.visualize.image_grid import Image


def page(title: str, sections: Sequence[str]) -> str:
    """A page of these sections, with its style and scripts."""
    style, *scripts = (asset(name) for name in ("report.css", "viewer.js", "report.js"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} · nfsd3d</title><style>\n{style}</style></head>\n<body>\n"
        + "\n".join(part for part in sections if part)
        + "".join(f"\n<script>\n{script}</script>" for script in scripts)
        + "\n</body></html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls where it is wider than the page."""
    header = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'


def plots(charts: Sequence[str], note: str = "") -> str:
    """A section of charts below a note; "" without any."""
    found = "".join(f"<figure>{chart}</figure>" for chart in charts if chart)
    words = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<h2>Training</h2>{words}<div class="plots">{found}</div>' if found else ""


def in_words(value: object) -> str:
    """A value of a table in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def image_source(path: Path, width: int | None = None) -> str:
    """An image file as the address of a JPEG image within the page, reduced to ``width`` pixels if it is wider.

    "" for a file that cannot be read as an image.
    """
    try:
        with PIL.open(path) as opened:
            return jpeg_source(np.asarray(opened.convert("RGB")), width)
    except (OSError, ValueError, SyntaxError, EOFError):  # what Pillow raises for damaged files
        return ""


def jpeg_source(pixels: Image, width: int | None = None) -> str:
    """An image [H,W,3] as the address of a JPEG image within a page, reduced to ``width`` pixels if it is wider."""
    image = PIL.fromarray(pixels)
    if width is not None and image.width > width:
        image = image.resize((width, round(image.height * width / image.width)))
    compressed = io.BytesIO()
    image.save(compressed, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64_text(compressed.getvalue())}"


def asset(name: str) -> str:
    """A file beside this module, in the folder of assets."""
    return files("nfsd3d.visualize").joinpath("assets", name).read_text(encoding="utf-8")


def base64_text(content: bytes) -> str:
    """``content`` as an address within the page has it."""
    return base64.b64encode(content).decode("ascii")
