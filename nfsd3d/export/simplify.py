"""Fewer triangles with the same shape."""

import itertools

import fast_simplification
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from nfsd3d.export.isosurface import Surface, outward_normals
from nfsd3d.export.mesh import SurfaceMesh

HASTES = (7.0, 5.0, 3.0)
"""How fast the collapses' tolerated error grows; the slower, the rarer is one that folds the surface."""

RETREATS = (1.0, 0.97, 0.9, 0.8)
"""Shares of the wanted triangles to try if the surface cannot be kept closed at any haste."""


def simplify(surface: Surface, max_faces: int) -> Surface:
    """The surface with at most about ``max_faces`` triangles (quadric edge collapse), closed as it was.

    Itself if it has no more. Now and then a collapse folds two triangles onto each other, or onto a third; such pairs
    are taken out, and where that does not leave every edge with two triangles, the collapses are tried again more
    carefully. A surface that cannot be simplified so is returned as it is.
    """
    if len(surface.faces) <= max_faces:
        return surface
    for share, haste in itertools.product(RETREATS, HASTES):
        target = round(share * max_faces)
        vertices, faces = fast_simplification.simplify(surface.vertices, surface.faces, target_count=target, agg=haste)
        faces = without_folds(faces)
        if len(faces) and len(faces) <= max_faces and is_closed(faces):
            used, faces = np.unique(faces, return_inverse=True)
            return Surface(vertices[used].astype(np.float32), faces.reshape(-1, 3).astype(np.int32))
    return surface


def simplify_mesh(mesh: SurfaceMesh, max_faces: int) -> SurfaceMesh:
    """As :func:`simplify` for a finished mesh, which loses its texture; normals and colours are the nearest vertex'."""
    if len(mesh.faces) <= max_faces:
        return mesh
    small = simplify(Surface(mesh.vertices, mesh.faces), max_faces)
    nearest = KDTree(mesh.vertices).query(small.vertices)[1]
    normals = outward_normals(small.vertices, small.faces, mesh.normals[nearest])
    return SurfaceMesh(small.vertices, small.faces, normals, mesh.colors[nearest])


def without_folds(faces: NDArray) -> NDArray:
    """The triangles [F,3] without those that lie back to back on the same three vertices, pair by pair."""
    turned = np.sort(faces, axis=1)
    _, group = np.unique(turned, axis=0, return_inverse=True)
    # +1 for an even permutation of the sorted vertices, -1 for an odd one.
    first = faces.argmin(axis=1)[:, None]
    ordered = np.take_along_axis(faces, (first + np.arange(3)) % 3, axis=1)
    sign = np.where(ordered[:, 1] < ordered[:, 2], 1, -1)
    surplus = np.bincount(group, sign).astype(np.int64)
    order = np.lexsort((-sign * np.sign(surplus[group]), group))
    rank = np.arange(len(faces)) - np.searchsorted(group[order], group[order])
    return faces[np.sort(order[rank < np.abs(surplus[group[order]])])]


def is_closed(faces: NDArray) -> bool:
    """Whether every edge of the triangles [F,3] has exactly two of them, which pass it in opposite directions."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).astype(np.int64)
    forward = edges[:, 0] < edges[:, 1]
    key = edges.min(axis=1) * (int(faces.max()) + 1) + edges.max(axis=1)
    _, group = np.unique(key, return_inverse=True)
    ways = np.bincount(group, np.where(forward, 1, -1))
    return bool((np.bincount(group) == 2).all() and (ways == 0).all() and (edges[:, 0] != edges[:, 1]).all())
