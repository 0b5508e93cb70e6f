"""Converts what trimesh's loaders of PLY and STL return: geometries, polygons, UV positions.

The loaders' arrays are taken before a ``trimesh.Trimesh`` rounds colours to 8 bits.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfsd3d.generators.mesh.surface import FloatArray


def geometries_with_faces(loaded: dict[str, Any]) -> list[dict[str, Any]]:
    """The geometries with triangles in the result of one of trimesh's loaders."""
    found = loaded["geometry"].values() if "geometry" in loaded else [loaded]
    return [geometry for geometry in found if geometry.get("faces") is not None]


def uv_from_top(uv: NDArray[Any] | None) -> FloatArray | None:
    """[N,2] UV positions from the upper left corner, of ``uv`` [N,2] from the lower left corner."""
    return None if uv is None else (uv * [1, -1] + [0, 1]).astype(np.float32)


def fan_triangulated(polygons: NDArray[Any]) -> NDArray[Any]:
    """[F,3] triangles of ``polygons`` [P,K], each cut into a fan from its first corner."""
    corners = np.asarray(polygons).shape[1]
    return np.stack([polygons[:, [0, k, k + 1]] for k in range(1, corners - 1)], axis=1).reshape(-1, 3)
