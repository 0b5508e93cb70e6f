"""Renumbers vertices: merges those at exactly equal positions, and drops those that no triangle uses.

A vertex of a GLB has one normal and one UV position, so that the file repeats it along seams and hard edges. An
optimiser that moves vertices would tear the surface apart there. Nothing is welded within a tolerance.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def used_vertices(faces: NDArray[Any], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The vertices [K] that ``faces`` [F,3] use, of ``count`` in ascending order, and the faces [F,3] renumbered."""
    used = np.zeros(count, bool)
    used[faces] = True
    return np.flatnonzero(used), (np.cumsum(used) - 1)[faces]


def distinct_rows(rows: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct rows of ``rows`` [N,C], numbered in the order of their first occurrence.

    Returns the number [N] of each row, and the index [V] of the first occurrence of each number.
    """
    order = np.lexsort(rows.T)  # stable: the first of equal rows has the least index
    ordered = rows[order]
    begins = np.ones(len(rows), bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = order[begins]
    place = np.argsort(first)
    rank = np.empty(len(first), np.int64)
    rank[place] = np.arange(len(first))
    number = np.empty(len(rows), np.int64)
    number[order] = rank[np.cumsum(begins) - 1]
    return number, first[place]


def sums_by_number(values: NDArray[Any], number: NDArray[np.int64]) -> NDArray[np.float64]:
    """[V,C] the sums of the ``values`` [N,C] with the same ``number`` [N]."""
    return np.stack([np.bincount(number, column) for column in values.T], axis=1)
