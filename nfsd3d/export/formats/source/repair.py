"""Repairs of a source mesh: unused vertices, triangles without area, duplicates, meshes that are inside out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfsd3d.export.formats.source.messages import counted, source_error
from nfsd3d.export.formats.source.part import Part
from nfsd3d.export.formats.source.vertices import distinct_rows

_FLAT = 1e-12
"""A triangle has no area if its area is less than this fraction of its longest edge squared."""


def without_unused(parts: Sequence[Part], notes: list[str]) -> list[Part]:
    """The parts without vertices that no triangle uses; notes how many were dropped."""
    used = [part.used() for part in parts]
    pairs = zip(parts, used, strict=True)
    if unused := sum(len(part.positions) - len(after.positions) for part, after in pairs if not part.shares):
        notes.append(f"has {counted(unused, 'vertex')} without triangles: dropped")
    return used


def sound_triangles(path: Path, world: NDArray[Any], faces: NDArray[Any], notes: list[str]) -> NDArray[np.int64]:
    """The numbers [K] of the triangles of ``faces`` [F,3] that have an area and no duplicate before them.

    ``world`` [V,3]: positions. Notes how many are removed.

    Raises:
        InputError: none has.
    """
    corner = world[faces]
    sides = np.roll(corner, -1, axis=1) - corner
    areas = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1) / 2
    sound = np.flatnonzero(areas > _FLAT * (sides**2).sum(axis=2).max(axis=1))
    if not len(sound):
        raise source_error(path, f"all of its {counted(len(faces), 'triangle')} have zero area; export the mesh again")
    if flat := len(faces) - len(sound):
        notes.append(f"has {counted(flat, 'triangle')} of zero area: removed")
    # The same triangle wound the other way is the back of a sheet, possibly with a texture of its own.
    turn = (faces[sound].argmin(axis=1)[:, None] + np.arange(3)) % 3
    _, first = distinct_rows(np.take_along_axis(faces[sound], turn, axis=1))
    if repeated := len(sound) - len(first):
        notes.append(f"has {counted(repeated, 'duplicate triangle')}: removed")
    return sound[first]


def is_inside_out(world: NDArray[Any], faces: NDArray[Any], notes: list[str]) -> bool:
    """Whether the mesh of ``world`` [V,3] and ``faces`` [F,3] is closed and its signed volume negative.

    Notes open and inconsistently wound edges, and whether it is inside out.
    """
    start, end = faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)
    key = np.minimum(start, end) * len(world) + np.maximum(start, end)
    _, edge, count = np.unique(key, return_inverse=True, return_counts=True)
    balance = np.bincount(edge, np.where(start < end, 1, -1))
    opened, twisted = int((count == 1).sum()), int(((balance != 0) & (count > 1)).sum())
    if opened:
        notes.append(f"has holes ({counted(opened, 'open edge')}): it is optimised as an open surface")
    if twisted:
        notes.append(f"has {counted(twisted, 'edge')} between triangles that face opposite ways: kept as they are")
    if opened or twisted:
        return False
    corner = world[faces]
    volume = np.einsum("ij,ij->", corner[:, 0], np.cross(corner[:, 1], corner[:, 2])) / 6
    if volume >= -1e-9 * np.ptp(world, axis=0).max() ** 3:  # a sheet with a front and a back has none
        return False
    notes.append("is inside out: its triangles are turned round")
    return True
