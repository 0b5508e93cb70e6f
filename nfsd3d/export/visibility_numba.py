"""Visibility of the voxels of a density grid from many directions, in numba."""

import math

import numpy as np
from numba import prange

from nfsd3d.generators.nerf.launch_numba import kernel

HALF = math.log(2.0)


@kernel()
def mark_visible(optical, paths, lengths, seen):  # type: ignore[no-untyped-def]
    """Marks in ``seen`` [n,n,n] bool the voxels that are visible from outside along one of D directions.

    ``optical`` [n,n,n] float32: optical depths across a voxel's edge. ``paths`` [D,K,3] int64: offsets of the voxels
    that a ray passes on its way out, starting with 0. ``lengths`` [D] float32: the ray's length in each, in edges.

    A voxel is hidden from a direction if the ray's visible surface is in front of the voxel's centre: the place where
    the density that stops the ray (halves its transmittance) would have to begin to stop it alone.
    """
    n = optical.shape[0]
    directions, steps = paths.shape[0], paths.shape[1]
    for layer in prange(n):
        i = np.int64(layer)
        first = 0  # neighbours are mostly visible from the same direction
        for j in range(n):
            for k in range(n):
                for turn in range(directions + 1):
                    d = first if turn == 0 else turn - 1
                    before = 0.0
                    for s in range(1, steps):
                        x, y, z = i + paths[d, s, 0], j + paths[d, s, 1], k + paths[d, s, 2]
                        if x < 0 or y < 0 or z < 0 or x >= n or y >= n or z >= n or before > HALF:
                            break
                        before += optical[x, y, z] * lengths[d]
                    if before > HALF:
                        continue
                    hidden = False
                    for s in range(steps):
                        x, y, z = i - paths[d, s, 0], j - paths[d, s, 1], k - paths[d, s, 2]
                        if x < 0 or y < 0 or z < 0 or x >= n or y >= n or z >= n:
                            break
                        own = optical[x, y, z] * lengths[d]
                        if before + own > HALF:
                            hidden = before >= (s - 0.5) * own
                            break
                        before += own
                    if not hidden:
                        seen[i, j, k] = True
                        first = d
                        break
