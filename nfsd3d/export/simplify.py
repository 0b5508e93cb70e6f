"""Fewer triangles with the same shape."""

import itertools

import fast_simplification
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from nfsd3d.export.isosurface import Surface, outward_normals
from nfsd3d.export.mesh import FloatArray, SurfaceMesh

HASTES = (7.0, 5.0, 3.0)
"""How fast the collapses' tolerated error grows."""

SHARES = (1.0, 0.98)
"""Of the wanted triangles: drawing sheets apart costs a few."""

APART = 0.05
"""Where sheets touch, each is drawn back by this share of the way to its own triangles."""


def simplify(surface: Surface, max_faces: int) -> Surface:
    """The surface with at most about ``max_faces`` triangles (quadric edge collapse), closed as it was.

    Itself if it has no more. Collapses fold triangles onto each other now and then, and make sheets touch in an edge;
    folds are taken out, and touching sheets drawn apart. Should the result not be closed nevertheless, the collapses
    are tried again more carefully, and at last the surface is left as it is.
    """
    if len(surface.faces) <= max_faces:
        return surface
    for share, haste in itertools.product(SHARES, HASTES):
        target = round(share * max_faces)
        vertices, faces = fast_simplification.simplify(surface.vertices, surface.faces, target_count=target, agg=haste)
        faces = without_folds(faces)
        if len(faces) == 0:
            continue
        small = apart(vertices.astype(np.float32), faces)
        if len(small.faces) <= max_faces and is_closed(_merged(small)):
            return small
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


def apart(vertices: FloatArray, faces: NDArray) -> Surface:
    """The surface of ``faces`` [F,3], closed, with two triangles at each edge.

    At an edge with more of them several sheets touch. Each gets a vertex of its own in the middle of the edge, which is
    drawn back from it a little; its two triangles there are those with a piece of the solid between them.
    """
    start, end = faces.reshape(-1).astype(np.int64), np.roll(faces, -1, axis=1).reshape(-1)
    key = np.minimum(start, end) * (int(faces.max()) + 1) + np.maximum(start, end)
    order = np.argsort(key, kind="stable")
    _, first, count = np.unique(key[order], return_index=True, return_counts=True)
    added: list[NDArray] = []
    halved: dict[int, dict[int, int]] = {}  # of a triangle the sides, and the vertex in the middle of each
    for begin, many in zip(first[count > 2], count[count > 2], strict=True):
        sides = np.stack(np.divmod(order[begin : begin + many], 3), axis=-1)
        for pair in _mates(vertices, faces, sides):
            middle = vertices[faces[sides[0, 0]][[sides[0, 1], (sides[0, 1] + 1) % 3]]].mean(axis=0)
            away = vertices[faces[sides[pair, 0]]].mean(axis=(0, 1)) - middle
            for face, side in sides[pair].tolist():
                halved.setdefault(face, {})[side] = len(vertices) + len(added)
            added.append(middle + APART * away)
    chunks = [piece for face, sides in halved.items() for piece in _chunks(faces[face].tolist(), sides)]
    whole = np.delete(faces, list(halved), axis=0)
    used, renumbered = np.unique(np.concatenate([whole, np.reshape(chunks, (-1, 3))]).astype(int), return_inverse=True)
    places = np.concatenate([vertices, np.reshape(added, (-1, 3))])[used].astype(np.float32)
    return Surface(places, renumbered.reshape(-1, 3).astype(np.int32))


def _chunks(corners: list[int], middles: dict[int, int]) -> list[tuple[int, int, int]]:
    """The triangles of one whose sides have vertices in their middles; a side is numbered by where it starts."""
    around = [vertex for side in range(3) for vertex in (corners[side], middles.get(side)) if vertex is not None]
    first = around.index(next(iter(middles.values())))
    around = around[first:] + around[:first]
    return [(around[0], around[k], around[k + 1]) for k in range(1, len(around) - 1)]


def _mates(vertices: FloatArray, faces: NDArray, sides: NDArray) -> list[list[int]]:
    """Which two of the ``sides`` [2N,2] (triangle, and where in it the side starts) at one edge belong together.

    One of them passes the edge in the direction of the first, the other one against it, with solid between them.
    """
    start = faces[tuple(sides.T)]
    low, high = vertices[start[0]].astype(np.float64), vertices[faces[sides[0, 0], (sides[0, 1] + 1) % 3]]
    axis = high - low
    across = vertices[faces[sides[:, 0], (sides[:, 1] + 2) % 3]] - low
    u = np.cross(axis, np.eye(3)[np.abs(axis).argmin()])
    v = np.cross(axis, u) / max(float(np.linalg.norm(axis)), 1e-30)
    forward = start == start[0]
    # Looking against the edge's direction, angles grow counter-clockwise; the solid begins behind a triangle that
    # passes it forwards, on the side of smaller angles. So in falling order a forward one meets its mate next.
    order = np.argsort(-np.arctan2(across @ v, across @ u), kind="stable").tolist()
    mates: list[list[int]] = []
    while order:
        at = next(k for k in range(len(order)) if forward[order[k]] and not forward[order[(k + 1) % len(order)]])
        mates.append([order[at], order[(at + 1) % len(order)]])
        order = [side for side in order if side not in mates[-1]]
    return mates


def _merged(surface: Surface) -> NDArray:
    """The triangles [F,3] with one number for all vertices in one place."""
    _, place = np.unique(surface.vertices, axis=0, return_inverse=True)
    return place.reshape(-1)[surface.faces]


def is_closed(faces: NDArray) -> bool:
    """Whether every edge of the triangles [F,3] has exactly two of them, which pass it in opposite directions."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).astype(np.int64)
    forward = edges[:, 0] < edges[:, 1]
    key = edges.min(axis=1) * (int(faces.max()) + 1) + edges.max(axis=1)
    _, group = np.unique(key, return_inverse=True)
    ways = np.bincount(group, np.where(forward, 1, -1))
    return bool((np.bincount(group) == 2).all() and (ways == 0).all() and (edges[:, 0] != edges[:, 1]).all())
