"""Size, unit, axes and origin of a mesh in a file.

A world unit is a metre, unless a size is asked for. The numbers in a file are lengths in the file's unit: metres where
the format says so (glTF), else metres as long as the mesh has the world's size, and millimetres once it has a size of
its own, as slicers expect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nfsd3d.generators.mesh.surface import SurfaceMesh
from nfsd3d.settings.export import Placement

Up = Literal["y", "z"]
AXES: dict[Up, str] = {"y": "+Y up, +Z front, +X left", "z": "+Z up, +X front, +Y left"}
METRES: dict[str, float] = {"m": 1.0, "cm": 0.01, "mm": 0.001, "in": 0.0254}
"""A unit in metres."""


@dataclass(frozen=True)
class Placed:
    """A mesh in the numbers of a file.

    ``mesh``: its vertices in the file's unit and origin, still z-up as in the world; ``unit`` of :data:`METRES`;
    ``up``: the file's upward axis. World coordinates are ``vertices * scale + offset``. ``compress``: of a GLB.
    """

    mesh: SurfaceMesh
    unit: str
    up: Up
    scale: float
    offset: tuple[float, float, float]
    compress: str

    def turned(self, vectors: NDArray) -> NDArray:
        """[N,3] vectors of the world's axes in the file's."""
        return y_up(vectors) if self.up == "y" else vectors

    @property
    def facts(self) -> Mapping[str, str | float | list[float]]:
        """Axes and units in words, and how world coordinates are had again."""
        extent = np.ptp(self.mesh.vertices, axis=0).max() * METRES[self.unit]
        moved = {"to_world": [self.scale, *self.offset]} if self.scale != 1.0 or any(self.offset) else {}
        if not moved and self.unit == "m":
            units = "1 unit = 1 world unit; the object lies in [-radius, radius]^3"
        else:
            units = f"1 unit = 1 {self.unit}; the longest side is {extent * 1000:.4g} mm"
        return {"axes": AXES[self.up], "units": units, **moved}


def place(mesh: SurfaceMesh, wanted: Placement, up: Up, unit: str | None, *, turns: bool) -> Placed:
    """``mesh`` as ``wanted`` in a format with the usual axis ``up``.

    ``unit`` is the format's own, or None if it names none; ``turns``: the format leaves the upward axis open.
    """
    low, high = mesh.vertices.min(0).astype(np.float64), mesh.vertices.max(0).astype(np.float64)
    origin = np.zeros(3)
    if wanted.origin != "world":
        origin = (low + high) / 2
        if wanted.origin == "floor":
            origin[2] = low[2]
    if unit is None:
        unit = wanted.units if wanted.units != "auto" else "m" if wanted.size_mm is None else "mm"
    metres = 1.0 if wanted.size_mm is None else wanted.size_mm / 1000 / max(float((high - low).max()), 1e-12)
    factor = metres / METRES[unit]
    if wanted.up != "auto" and turns:
        up = wanted.up
    if factor != 1.0 or origin.any():
        vertices = ((mesh.vertices - origin) * factor).astype(np.float32)
        mesh = replace(mesh, vertices=vertices)
    x, y, z = map(float, origin)
    return Placed(mesh, unit, up, 1 / factor, (x, y, z), wanted.compress)


def turned_mesh(placed: Placed) -> SurfaceMesh:
    """The mesh with vertices and normals in the file's axes."""
    mesh = placed.mesh
    return replace(mesh, vertices=placed.turned(mesh.vertices), normals=placed.turned(mesh.normals))


def y_up(vectors: NDArray) -> NDArray:
    """[N,3] world vectors (x front, y left, z up) in glTF's axes (X left, Y up, Z front)."""
    return vectors[:, [1, 2, 0]]
