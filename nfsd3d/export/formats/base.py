"""What all mesh formats share: metadata, the contents of files, PNG images."""

from collections.abc import Mapping

import imageio.v3 as imageio
import numpy as np
from numpy.typing import NDArray

import nfsd3d
from nfsd3d.export.formats.placement import Placed

Extras = Mapping[str, str | int | float]
Files = dict[str, bytes]
"""Contents by file name, in the order of writing: a file comes after those it refers to."""

GENERATOR = f"nfsd3d {nfsd3d.__version__}"


def png_bytes(image: NDArray[np.uint8]) -> bytes:
    """A PNG of ``image`` [H,W,3]."""
    return imageio.imwrite("<bytes>", image, extension=".png")


def facts_of(placed: Placed, extras: Extras) -> dict[str, str]:
    """The metadata of a file, each on one line: its program, ``extras``, axes and units."""
    facts = {"generator": GENERATOR, **extras, **placed.facts}
    return {key: _one_line(str(value)) for key, value in facts.items()}


def _one_line(text: str) -> str:
    """``text`` without line breaks, and without characters that XML or UTF-8 cannot hold."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
