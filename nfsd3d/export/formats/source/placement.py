"""Upward axis, scale and shift of a source mesh: how it is placed in the world's cube."""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfsd3d.export.formats.placement import Up

FILL = 0.8
"""Longest side of a mesh that is scaled, as a fraction of the world's."""

SMALLEST = 0.2
"""Smallest longest side, in radii, of a mesh inside the cube that keeps its size and place."""

TO_WORLD: dict[Up, NDArray[np.float64]] = {
    "y": np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
    "z": np.eye(3),
}
"""Rotation [3,3] from file to world axes by the upward axis of the file: the inverse of what the exporters do."""


def upward_axis(name: str, content: bytes, notes: list[str]) -> Up:
    """The upward axis that a file of ``nfsd3d`` names, else the usual one of its format ``name``."""
    head = content[:16384]
    named = re.search(rb"\baxes: \+([YZ]) up|\Anfsd3d [^,]+, ([yz]) up", head) if b"nfsd3d " in head else None
    if named and name != "glb":
        return "z" if (named[1] or named[2]).lower() == b"z" else "y"
    usual: Up = "y" if name in ("glb", "obj") else "z"
    if name != "glb":  # where it is no assumption
        notes.append(f"does not name its upward axis: {usual} is taken, as is usual in {name.upper()}")
    return usual


def scale_and_shift(
    turned: NDArray[Any], radius: float, to_world: tuple[float, NDArray[Any]] | None, notes: list[str]
) -> tuple[float, NDArray[Any]]:
    """Scale and shift [3] that place ``turned`` [V,3], positions in world axes, in the cube of half-width ``radius``.

    ``to_world``: scale and shift that the file itself names; they are used if the mesh then fits.
    """
    low, high = turned.min(axis=0), turned.max(axis=0)
    size = float((high - low).max())

    def fits(scale: float, shift: NDArray[Any]) -> bool:
        inside = np.abs(np.stack([low, high]) * scale + shift).max() <= radius * (1 + 1e-6)
        return bool(inside) and scale * size >= SMALLEST * radius

    if to_world is not None and fits(*to_world):
        notes.append("was exported at another size or origin: it is moved back to where it was in the world")
        return to_world
    if size < 1e-300 or fits(1.0, np.zeros(3)):
        return 1.0, np.zeros(3)
    scale = 2 * FILL * radius / size
    sides = " x ".join(f"{side:.4g}" for side in high - low)
    notes.append(f"has a size of {sides} units: it is scaled by {scale:.4g} and centred")
    return scale, -scale * (low + high) / 2
