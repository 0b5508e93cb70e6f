"""The marching cubes table: closed, wound outward, and consistent across faces."""

import itertools

import numpy as np
import pytest

from nfsd3d.export.marching_cubes_table import CORNERS, EDGES, triangle_table

TABLE, COUNTS = triangle_table()
MIDDLES = CORNERS[EDGES].mean(axis=1)


def triangles(pattern):
    return TABLE[pattern, : COUNTS[pattern]].astype(int)


def sides(pattern):
    """The directed edges of the triangles of a pattern that no other triangle of it has in the other direction."""
    directed = {(t[k], t[(k + 1) % 3]) for t in triangles(pattern).tolist() for k in range(3)}
    assert len(directed) == 3 * len(triangles(pattern))  # no edge twice in one direction
    return {(a, b) for a, b in directed if (b, a) not in directed}


@pytest.mark.parametrize("pattern", range(256))
def test_triangles_use_each_crossed_edge_and_no_other(pattern):
    crossed = [e for e, (a, b) in enumerate(EDGES) if (pattern >> a & 1) != (pattern >> b & 1)]
    assert set(triangles(pattern).ravel().tolist()) == set(crossed)


@pytest.mark.parametrize("axis", range(3))
def test_two_cells_meet_in_the_same_segments_and_have_no_diagonal_there(axis):
    """For all signs of a face: what the cell below leaves open there, the one above closes, in the other direction."""
    upper, lower = (np.flatnonzero(CORNERS[:, axis] == side) for side in (1, 0))
    shift = np.eye(3, dtype=int)[axis]
    above_of = {
        e: next(k for k, m in enumerate(MIDDLES) if np.allclose(m + shift, MIDDLES[e]))
        for e in range(12)
        if MIDDLES[e, axis] == 1
    }
    for signs, rest in itertools.product(range(16), (0, 5, 10, 15)):
        face = [signs >> k & 1 for k in range(4)]
        other = [rest >> k & 1 for k in range(4)]
        below = sum(s << int(c) for s, c in zip(face + other, [*upper, *lower], strict=True))
        above = sum(s << int(c) for s, c in zip(face + other, [*lower, *upper], strict=True))
        on_face = {(above_of[a], above_of[b]) for a, b in sides(below) if a in above_of and b in above_of}
        facing = {(b, a) for a, b in sides(above) if {a, b} <= set(above_of.values())}
        assert on_face == facing
        # Every edge of a triangle that lies in the face is one of its segments.
        inner = {tuple(sorted((t[k], t[(k + 1) % 3]))) for t in triangles(below).tolist() for k in range(3)}
        assert {pair for pair in inner if set(pair) <= set(above_of)} == {
            tuple(sorted(pair)) for pair in sides(below) if set(pair) <= set(above_of)
        }


def test_triangles_face_away_from_the_inside():
    for corner in range(8):
        a, b, c = MIDDLES[triangles(1 << corner)[0]]
        outward = (a + b + c) / 3 - CORNERS[corner]
        assert np.cross(b - a, c - a) @ outward > 0
        a, b, c = MIDDLES[triangles(255 - (1 << corner))[0]]
        assert np.cross(b - a, c - a) @ outward < 0
