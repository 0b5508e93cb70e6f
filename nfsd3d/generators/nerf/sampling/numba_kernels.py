"""Ray marching through the occupancy grid in numba, for the CPU; bit-identical to ``sampling.march_torch``."""

import math

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from nfsd3d.errors import InputError
from nfsd3d.generators.nerf.launch_numba import kernel, launch
from nfsd3d.generators.nerf.occupancy import OccupancyGrid
from nfsd3d.generators.nerf.sampling.types import Fill, Lines


def march_numba(lines: Lines, step: float, occupancy: OccupancyGrid) -> tuple[Tensor, Fill]:
    """Counts the samples of every ray, then writes them; implements ``types.March``.

    Raises InputError for tensors that are not on the CPU.
    """
    if lines.near.device.type != "cpu":
        raise InputError("backend.sampler=numba works on the CPU only; choose backend.sampler=torch or machine=cpu")
    resolution = occupancy.resolution
    arguments = (
        lines.origins.contiguous(),
        lines.directions.contiguous(),
        lines.near.contiguous(),
        lines.far.contiguous(),
        lines.shift.contiguous(),
        np.float32(step),
        occupancy.occupied,
        np.float32(resolution / (2 * occupancy.radius)),
        np.float32(resolution / 2),
    )
    counts = torch.empty(lines.near.shape[0], dtype=torch.int64)
    launch(_count, *arguments, counts)
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))

    def fill(total: int) -> tuple[Tensor, Tensor]:
        ray_indices, t_mids = torch.empty(total, dtype=torch.int64), torch.empty(total)
        launch(_fill, *arguments, offsets, ray_indices, t_mids)
        return ray_indices, t_mids

    return offsets, fill


@njit(inline="always")
def _is_occupied(origin, direction, t, occupied, scale, half):  # type: ignore[no-untyped-def]
    last = occupied.shape[0] - 1
    i = min(max(int(math.floor((origin[0] + t * direction[0]) * scale + half)), 0), last)
    j = min(max(int(math.floor((origin[1] + t * direction[1]) * scale + half)), 0), last)
    k = min(max(int(math.floor((origin[2] + t * direction[2]) * scale + half)), 0), last)
    return occupied[i, j, k]


@kernel(exact=True)
def _count(origins, directions, near, far, shift, step, occupied, scale, half, counts):  # type: ignore[no-untyped-def]
    for ray in prange(near.shape[0]):
        found = 0
        sample = 0
        t = near[ray] + shift[ray] * step
        while t < far[ray]:
            if _is_occupied(origins[ray], directions[ray], t, occupied, scale, half):
                found += 1
            sample += 1
            t = near[ray] + (np.float32(sample) + shift[ray]) * step
        counts[ray] = found


@kernel(exact=True)
def _fill(  # type: ignore[no-untyped-def]
    origins, directions, near, far, shift, step, occupied, scale, half, offsets, ray_indices, t_mids
):
    for ray in prange(near.shape[0]):
        place = offsets[ray]
        sample = 0
        t = near[ray] + shift[ray] * step
        while place < offsets[ray + 1]:
            if _is_occupied(origins[ray], directions[ray], t, occupied, scale, half):
                ray_indices[place] = ray
                t_mids[place] = t
                place += 1
            sample += 1
            t = near[ray] + (np.float32(sample) + shift[ray]) * step
