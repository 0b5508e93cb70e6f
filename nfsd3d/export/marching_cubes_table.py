"""The triangle table of marching cubes (Lorensen and Cline, 1987), derived so that meshes are closed.

Design note. Problem: in the classic table, neighbouring cells can disagree about an ambiguous face (opposite signs on
its diagonals), which leaves holes. Idea: derive the table. The surface crosses each face of a cell in segments between
crossed edges; on an ambiguous face the inside corners are separated. Both cells at a face see the same signs, so their
segments agree. Segments close to loops around the cell, and loops become triangles without a diagonal in a face, where
the neighbour could have the same one. So each edge of the mesh has exactly two triangles, and the mesh is closed
wherever the samples around it are outside.
"""

import itertools
from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

CORNERS: NDArray[np.int64] = np.array(list(itertools.product((0, 1), repeat=3)))
"""[8,3] offsets of a cell's corners; a pattern has bit k set where corner k is inside."""

EDGES: NDArray[np.int64] = np.array(
    [(a, b) for a, b in itertools.combinations(range(8), 2) if np.abs(CORNERS[a] - CORNERS[b]).sum() == 1]
)
"""[12,2] the corners of each edge, the lower one first."""

Loop = tuple[int, ...]
Triangle = tuple[int, int, int]

_FACES: list[list[int]] = []  # the corners of each face, counter-clockwise seen from outside the cell
for _axis, _side in itertools.product(range(3), (0, 1)):
    _u, _v = (_axis + 1) % 3, (_axis + 2) % 3
    _around = [{_axis: _side, _u: u, _v: v} for u, v in ((0, 0), (1, 0), (1, 1), (0, 1))]
    _indices = [4 * corner[0] + 2 * corner[1] + corner[2] for corner in _around]
    _FACES.append(_indices if _side else _indices[::-1])

_EDGE_OF = {frozenset(pair): index for index, pair in enumerate(map(tuple, EDGES.tolist()))}
_FACES_OF_EDGE = [{f for f, face in enumerate(_FACES) if set(pair) <= set(face)} for pair in EDGES.tolist()]


@cache
def triangle_table() -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """[256,T,3] the edges of each pattern's triangles, and [256] the number of its triangles.

    Triangles are counter-clockwise seen from outside; unused entries are -1.
    """
    patterns = [[t for loop in _loops(pattern) for t in _triangulate(loop)] for pattern in range(256)]
    counts = np.array([len(triangles) for triangles in patterns])
    table = np.full((256, counts.max(), 3), -1, dtype=np.int8)
    for pattern, triangles in enumerate(patterns):
        table[pattern, : len(triangles)] = np.reshape(triangles, (-1, 3))
    return table, counts


def _loops(pattern: int) -> list[Loop]:
    """The closed paths over crossed edges where the surface meets the cell's faces."""
    inside = [bool(pattern >> corner & 1) for corner in range(8)]
    following: dict[int, int] = {}
    for face in _FACES:
        turns = [(face[k], face[(k + 1) % 4]) for k in range(4)]
        for k, (a, b) in enumerate(turns):
            if inside[a] or not inside[b]:
                continue
            # Going around the face, this edge enters the inside; the next crossed one leaves it.
            leaves = next(turns[(k + n) % 4] for n in range(1, 4) if not inside[turns[(k + n) % 4][1]])
            following[_EDGE_OF[frozenset((a, b))]] = _EDGE_OF[frozenset(leaves)]
    loops = []
    while following:
        first, edge = following.popitem()
        loop = [first]
        while edge != first:
            loop.append(edge)
            edge = following.pop(edge)
        loops.append(tuple(loop))
    return loops


def _triangulate(loop: Loop) -> list[Triangle]:
    """The triangles of a loop, without a diagonal whose ends are on the same face of the cell."""
    found = next(_triangulations(loop), None)
    assert found is not None, f"the loop {loop} has no triangulation inside its cell"
    return found


def _triangulations(loop: Loop) -> Iterator[list[Triangle]]:
    """All such triangulations, by recursion on the triangle at the side between the last and the first edge."""
    if len(loop) < 3:
        yield []
    for k in range(1, len(loop) - 1):
        diagonals = ([(0, k)] if k > 1 else []) + ([(k, -1)] if k < len(loop) - 2 else [])
        if not any(_FACES_OF_EDGE[loop[a]] & _FACES_OF_EDGE[loop[b]] for a, b in diagonals):
            for before, after in itertools.product(_triangulations(loop[: k + 1]), _triangulations(loop[k:])):
                yield [(loop[0], loop[k], loop[-1]), *before, *after]
