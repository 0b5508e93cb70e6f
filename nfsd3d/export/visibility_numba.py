"""Visibility of the voxels of a density grid, and the surfaces that rays through it meet, in numba."""

import math

import numpy as np
from numba import njit, prange

from nfsd3d.generators.nerf.launch_numba import kernel

HALF = math.log(2.0)


@kernel()
def mark_visible(optical, offsets, outward, inward, lengths, seen):  # type: ignore[no-untyped-def]
    """Marks in ``seen`` [n,n,n] bool the voxels that are visible from outside along one of D directions.

    ``optical`` [n,n,n] float32: optical depths across a voxel's edge. ``offsets`` [D,K] int64: how far in its memory
    the voxels are that a ray passes on its way out, beginning with 0. ``outward`` [D,3,n] int64: how many of them are
    inside the grid, by the voxel's index along each axis, and ``inward`` as many on the way in. ``lengths`` [D]
    float32: the ray's length in each, in edges.

    A voxel is hidden from a direction if the ray's visible surface is in front of the voxel's centre: the place where
    the density that stops the ray (halves its transmittance) would have to begin to stop it alone.
    """
    n = optical.shape[0]
    directions = offsets.shape[0]
    values = optical.reshape(n * n * n)
    for layer in prange(n):
        i = np.int64(layer)
        first = 0  # neighbours are mostly visible from the same direction
        for j in range(n):
            for k in range(n):
                here = (i * n + j) * n + k
                for turn in range(directions + 1):
                    d = first if turn == 0 else turn - 1
                    before = 0.0
                    for s in range(1, min(outward[d, 0, i], outward[d, 1, j], outward[d, 2, k])):
                        if before > HALF:
                            break
                        before += values[here + offsets[d, s]] * lengths[d]
                    if before > HALF:
                        continue
                    hidden = False
                    for s in range(min(inward[d, 0, i], inward[d, 1, j], inward[d, 2, k])):
                        own = values[here - offsets[d, s]] * lengths[d]
                        if before + own > HALF:
                            hidden = before >= (s - 0.5) * own
                            break
                        before += own
                    if not hidden:
                        seen[i, j, k] = True
                        first = d
                        break


@kernel()
def meet_surfaces(before, hidden, starts, steps, length, levels, shown, entered):  # type: ignore[no-untyped-def]
    """Marches V x R rays through a grid: where each meets the visible surface, and the surface of each level.

    ``before`` [n,n,n] float32: densities before the softplus; ``hidden`` [n,n,n] float32, above a half in hidden
    voxels. ``starts`` [V,R,3] float32: first samples, in voxels from the grid's first point; ``steps`` [V,3]: between
    samples, which are ``length`` world units apart. ``levels`` [L] float32, ascending.

    Results, in samples from the start, or -1: ``shown`` [V,R] float32, the place where the density that halves the
    transmittance would have to begin to halve it alone; ``entered`` [V,R,L] float32, the first sample of a density
    above each level, or hidden.
    """
    n = before.shape[0]
    views, rays, count = starts.shape[0], starts.shape[1], levels.shape[0]
    for flat in prange(views * rays):
        v, r = flat // rays, flat % rays
        shown[v, r] = -1.0
        for level in range(count):
            entered[v, r, level] = -1.0
        first, last = -math.inf, math.inf  # the samples inside the grid
        for axis in range(3):
            at, step = starts[v, r, axis], steps[v, axis]
            if step != 0.0:
                one, other = -at / step, (n - 1 - at) / step
                first, last = max(first, min(one, other)), min(last, max(one, other))
            elif at < 0.0 or at > n - 1:
                last = -math.inf
        if not first <= last:
            continue
        total = 0.0
        reached, stopped = 0, False
        for sample in range(max(math.ceil(first), 0), math.floor(last) + 1):
            x = min(max(starts[v, r, 0] + sample * steps[v, 0], 0.0), n - 1.0)
            y = min(max(starts[v, r, 1] + sample * steps[v, 1], 0.0), n - 1.0)
            z = min(max(starts[v, r, 2] + sample * steps[v, 2], 0.0), n - 1.0)
            value = _interpolated(before, x, y, z)
            density = max(value, 0.0) + math.log1p(math.exp(-abs(value)))
            if reached < count:
                covered = _interpolated(hidden, x, y, z) > 0.5
                while reached < count and (covered or density > levels[reached]):
                    entered[v, r, reached] = sample
                    reached += 1
            if not stopped:
                own = density * length
                if total + own > HALF:
                    shown[v, r] = max(sample - total / own, 0.0)
                    stopped = True
                total += own
            if stopped and reached == count:
                break


@njit(inline="always")
def _interpolated(values, x, y, z):  # type: ignore[no-untyped-def]
    """Trilinear interpolation of ``values`` [n,n,n] inside the grid."""
    last = values.shape[0] - 2
    i, j, k = min(int(x), last), min(int(y), last), min(int(z), last)
    u, v, w = x - i, y - j, z - k
    near = (values[i, j, k] * (1 - w) + values[i, j, k + 1] * w) * (1 - v) + (
        values[i, j + 1, k] * (1 - w) + values[i, j + 1, k + 1] * w
    ) * v
    i += 1
    far = (values[i, j, k] * (1 - w) + values[i, j, k + 1] * w) * (1 - v) + (
        values[i, j + 1, k] * (1 - w) + values[i, j + 1, k + 1] * w
    ) * v
    return near * (1 - u) + far * u
