"""Mesh simplification by quadric edge collapse, with repairs that keep the mesh closed.

Design note. Problem: ``fast_simplification`` folds triangles onto each other and pinches sheets together at an edge, so
that the result of a closed mesh is not closed: unwrapping and volume then fail. Nor does it take the cheapest edges
first: it collapses what is below a bound that is a plain number, so that a small mesh is simplified in the order of its
file. Idea: remove folded pairs (``without_folds``), split pinched edges (``apart``), test for closedness, and otherwise
repeat with more careful collapses; in a unit that fits the bounds (``unit``). Measured (docs/benchmarks.md, "Meshes"):
all seven meshes of 50,000 triangles are closed, with positive volume.
"""

import itertools

import fast_simplification
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from nfsd3d.export import unit
from nfsd3d.export.isosurface import Surface, outward_normals
from nfsd3d.generators.mesh.surface import FloatArray, SurfaceMesh

AGGRESSIVENESS = (7.0, 6.0, 5.0)
"""How fast the tolerated error of collapses grows; tried in turn. With 4, 5,000 triangles are not reached."""

SHARES = (1.0, 0.98)
"""Targets, as fractions of the requested number of triangles: splitting pinched edges adds a few."""

APART = 0.05
"""How far a pinched sheet's new vertex moves towards the centre of its own triangles, as a fraction of the distance."""


def simplify(surface: Surface, max_faces: int) -> Surface:
    """The surface with at most about ``max_faces`` triangles (quadric edge collapse), closed as it was.

    A surface that has no more is returned unchanged. Folded triangles are removed and pinched edges split; if the
    result is still not closed, simplification is repeated with less aggressive collapses. If none of the attempts
    gives a closed surface, the original is returned.
    """
    if len(surface.faces) <= max_faces:
        return surface
    scale = unit.factor(surface.vertices)
    given = (surface.vertices * scale).astype(np.float32)
    for share, aggressiveness in itertools.product(SHARES, AGGRESSIVENESS):
        target = round(share * max_faces)
        vertices, faces = fast_simplification.simplify(given, surface.faces, target_count=target, agg=aggressiveness)
        faces = without_folds(faces)
        if len(faces) == 0:
            continue
        small = apart((vertices / scale).astype(np.float32), faces)
        if len(small.faces) <= max_faces and is_closed(_merged(small)):
            return small
    return surface


def simplify_mesh(mesh: SurfaceMesh, max_faces: int) -> SurfaceMesh:
    """As :func:`simplify`, for a mesh, without its texture; normals and colours are those of the nearest vertex."""
    if len(mesh.faces) <= max_faces:
        return mesh
    small = simplify(Surface(mesh.vertices, mesh.faces), max_faces)
    nearest = KDTree(mesh.vertices).query(small.vertices)[1]
    normals = outward_normals(small.vertices, small.faces, mesh.normals[nearest])
    return SurfaceMesh(small.vertices, small.faces, normals, mesh.colors[nearest])


def without_folds(faces: NDArray) -> NDArray:
    """The triangles [F,3] without pairs of opposite orientation on the same three vertices."""
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
    """The surface of closed ``faces`` [F,3] with its pinched edges split: two triangles at each edge.

    At an edge with more triangles several sheets touch. Each sheet gets its own vertex in the middle of the edge, moved
    away from it slightly. The two triangles of a sheet are those with a part of the solid between them.
    """
    start, end = faces.reshape(-1).astype(np.int64), np.roll(faces, -1, axis=1).reshape(-1)
    key = np.minimum(start, end) * (int(faces.max()) + 1) + np.maximum(start, end)
    order = np.argsort(key, kind="stable")
    _, first, count = np.unique(key[order], return_index=True, return_counts=True)
    added: list[NDArray] = []
    halved: dict[int, dict[int, int]] = {}  # by triangle: its split sides, and the vertex in the middle of each
    for begin, many in zip(first[count > 2], count[count > 2], strict=True):
        sides = np.stack(np.divmod(order[begin : begin + many], 3), axis=-1)
        for pair in _mates(vertices, faces, sides):
            middle = vertices[faces[sides[0, 0]][[sides[0, 1], (sides[0, 1] + 1) % 3]]].mean(axis=0)
            away = vertices[faces[sides[pair, 0]]].mean(axis=(0, 1)) - middle
            for face, side in sides[pair].tolist():
                halved.setdefault(face, {})[side] = len(vertices) + len(added)
            added.append(middle + APART * away)
    parts = [part for face, sides in halved.items() for part in _split(faces[face].tolist(), sides)]
    whole = np.delete(faces, list(halved), axis=0)
    used, renumbered = np.unique(np.concatenate([whole, np.reshape(parts, (-1, 3))]).astype(int), return_inverse=True)
    places = np.concatenate([vertices, np.reshape(added, (-1, 3))])[used].astype(np.float32)
    return Surface(places, renumbered.reshape(-1, 3).astype(np.int32))


def _split(corners: list[int], middles: dict[int, int]) -> list[tuple[int, int, int]]:
    """The parts of a triangle with additional vertices in the ``middles`` of sides; side k starts at corner k."""
    around = [vertex for side in range(3) for vertex in (corners[side], middles.get(side)) if vertex is not None]
    first = around.index(next(iter(middles.values())))
    around = around[first:] + around[:first]
    return [(around[0], around[k], around[k + 1]) for k in range(1, len(around) - 1)]


def _mates(vertices: FloatArray, faces: NDArray, sides: NDArray) -> list[list[int]]:
    """The pairs of ``sides`` [2N,2] (triangle, and its corner where the side starts) at one edge that form a sheet.

    One traverses the edge in the direction of the first side, the other against it, with solid between them.
    """
    start = faces[tuple(sides.T)]
    low, high = vertices[start[0]].astype(np.float64), vertices[faces[sides[0, 0], (sides[0, 1] + 1) % 3]]
    axis = high - low
    across = vertices[faces[sides[:, 0], (sides[:, 1] + 2) % 3]] - low
    u = np.cross(axis, np.eye(3)[np.abs(axis).argmin()])
    v = np.cross(axis, u) / max(float(np.linalg.norm(axis)), 1e-30)
    forward = start == start[0]
    # Seen against the edge's direction, angles grow counter-clockwise, and the solid is on the side of smaller angles
    # of a forward triangle. So in descending order, a forward triangle is followed by its mate.
    order = np.argsort(-np.arctan2(across @ v, across @ u), kind="stable").tolist()
    mates: list[list[int]] = []
    while order:
        at = next(k for k in range(len(order)) if forward[order[k]] and not forward[order[(k + 1) % len(order)]])
        mates.append([order[at], order[(at + 1) % len(order)]])
        order = [side for side in order if side not in mates[-1]]
    return mates


def _merged(surface: Surface) -> NDArray:
    """The triangles [F,3] with one index for all vertices at the same position."""
    _, place = np.unique(surface.vertices, axis=0, return_inverse=True)
    return place.reshape(-1)[surface.faces]


def is_closed(faces: NDArray) -> bool:
    """Whether every edge of the triangles [F,3] has exactly two of them, in opposite directions."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).astype(np.int64)
    forward = edges[:, 0] < edges[:, 1]
    key = edges.min(axis=1) * (int(faces.max()) + 1) + edges.max(axis=1)
    _, group = np.unique(key, return_inverse=True)
    ways = np.bincount(group, np.where(forward, 1, -1))
    return bool((np.bincount(group) == 2).all() and (ways == 0).all() and (edges[:, 0] != edges[:, 1]).all())
