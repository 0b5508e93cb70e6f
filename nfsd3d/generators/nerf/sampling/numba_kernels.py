"""Ray marching through the occupancy grid in numba, for the CPU; bit-identical to ``sampling.march_torch``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from numba import prange
from torch import Tensor

from nfsd3d.errors import InputError
from nfsd3d.generators.nerf.launch_numba import kernel, launch
from nfsd3d.generators.nerf.occupancy import OccupancyGrid
from nfsd3d.generators.nerf.sampling.types import Fill, Lines

if TYPE_CHECKING:
    from nfsd3d.generators.nerf.sampling.sampling import RaySamples
    from nfsd3d.views.cameras import Rays

# Samples of a ray whose cells are computed together; one bit each.
WORD = 32
UINT, ZERO, HALF = np.uint32, np.float32(0), np.float32(0.5)


def march_numba(lines: Lines, step: float, occupancy: OccupancyGrid) -> tuple[Tensor, Fill]:
    """Marks the occupied samples of every ray, then writes them; implements ``types.March``.

    Raises InputError for tensors that are not on the CPU.
    """
    if lines.near.device.type != "cpu":
        raise InputError("backend.sampler=numba works on the CPU only; choose backend.sampler=torch or machine=cpu")
    resolution = occupancy.resolution
    near, shift, rays = lines.near.contiguous(), lines.shift.contiguous(), lines.near.shape[0]
    longest = float((lines.far - near).max()) if rays else 0.0
    words = max(math.ceil((longest / step + 1) / WORD), 0)
    marks, counts = torch.empty(rays, words, dtype=torch.uint32), torch.empty(rays, dtype=torch.int64)
    launch(
        _mark,
        lines.origins.contiguous(),
        lines.directions.contiguous(),
        near,
        lines.far.contiguous(),
        shift,
        np.float32(step),
        occupancy.occupied,
        np.float32(resolution / (2 * occupancy.radius)),
        np.float32(resolution / 2),
        marks,
        counts,
    )
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))

    def fill(total: int) -> tuple[Tensor, Tensor]:
        ray_indices, t_mids = torch.empty(total, dtype=torch.int64), torch.empty(total)
        launch(_fill, near, shift, np.float32(step), marks, offsets, ray_indices, t_mids)
        return ray_indices, t_mids

    return offsets, fill


def points_numba(samples: RaySamples, rays: Rays, origin_distance: Tensor) -> tuple[Tensor, Tensor]:
    """The bits of ``sampling.sample_points`` from one pass over the samples.

    ``origin_distance`` [R] is how far each ray's origin is from the world's.
    """
    count = samples.t_starts.shape[0]
    positions, depth = rays.origins.new_empty(count, 3), rays.origins.new_empty(count)
    launch(
        _points,
        rays.origins.contiguous(),
        rays.directions.contiguous(),
        origin_distance,
        samples.t_starts,
        samples.t_ends,
        samples.offsets,
        positions,
        depth,
    )
    return positions, depth


@kernel(exact=True)
def _points(origins, directions, origin_distance, t_starts, t_ends, offsets, positions, depth):  # type: ignore[no-untyped-def]
    for ray in prange(offsets.shape[0] - 1):
        ox, oy, oz = origins[ray, 0], origins[ray, 1], origins[ray, 2]
        dx, dy, dz = directions[ray, 0], directions[ray, 1], directions[ray, 2]
        for s in range(offsets[ray], offsets[ray + 1]):
            t = (t_starts[s] + t_ends[s]) * HALF
            positions[s, 0] = ox + dx * t
            positions[s, 1] = oy + dy * t
            positions[s, 2] = oz + dz * t
            depth[s] = t - origin_distance[ray]


@kernel(exact=True)
def _mark(origins, directions, near, far, shift, step, occupied, scale, half, marks, counts):  # type: ignore[no-untyped-def]
    """Sets the bits in ``marks`` [R, words] of each ray's samples in occupied cells, and their number in ``counts``."""
    last = np.float32(occupied.shape[0] - 1)
    side = occupied.shape[0]
    cells = occupied.ravel()
    for ray in prange(near.shape[0]):
        ox, oy, oz = origins[ray, 0], origins[ray, 1], origins[ray, 2]
        dx, dy, dz = directions[ray, 0], directions[ray, 1], directions[ray, 2]
        found = 0
        for word in range(marks.shape[1]):
            if near[ray] + (np.float32(word * WORD) + shift[ray]) * step >= far[ray]:
                marks[ray, word] = 0
                continue
            # A first loop computes cells, which fill vector registers, and a second one reads the grid.
            inside, cell = np.empty(WORD, np.bool_), np.empty(WORD, np.int32)
            for bit in range(WORD):
                t = near[ray] + (np.float32(word * WORD + bit) + shift[ray]) * step
                i = min(max(np.floor((ox + t * dx) * scale + half), ZERO), last)
                j = min(max(np.floor((oy + t * dy) * scale + half), ZERO), last)
                k = min(max(np.floor((oz + t * dz) * scale + half), ZERO), last)
                inside[bit] = t < far[ray]
                cell[bit] = (np.int32(i) * side + np.int32(j)) * side + np.int32(k)
            bits = UINT(0)
            for bit in range(WORD):
                if inside[bit] and cells[cell[bit]]:
                    bits |= UINT(1) << UINT(bit)
                    found += 1
            marks[ray, word] = bits
        counts[ray] = found


@kernel(exact=True)
def _fill(near, shift, step, marks, offsets, ray_indices, t_mids):  # type: ignore[no-untyped-def]
    for ray in prange(near.shape[0]):
        place = offsets[ray]
        for word in range(marks.shape[1]):
            bits, sample = marks[ray, word], word * WORD
            while bits:
                if bits & UINT(1):
                    ray_indices[place] = ray
                    t_mids[place] = near[ray] + (np.float32(sample) + shift[ray]) * step
                    place += 1
                bits >>= UINT(1)
                sample += 1
