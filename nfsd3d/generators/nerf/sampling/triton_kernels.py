"""Ray marching through the occupancy grid in Triton, for CUDA; bit-identical to ``sampling.march_torch``.

The bits agree because ``launch_triton.launch`` disables fused multiply-adds: every product and every sum is rounded on
its own, as by torch's separate operations on the same device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from nfsd3d.generators.nerf.launch_triton import INTERPRETED, check_device, launch
from nfsd3d.generators.nerf.occupancy import OccupancyGrid
from nfsd3d.generators.nerf.sampling.types import Fill, Lines

if TYPE_CHECKING:
    from nfsd3d.generators.nerf.sampling.sampling import RaySamples
    from nfsd3d.views.cameras import Rays

# Rays of one program, and candidates that it tests together on each. A warp takes 32 candidates of one ray, so that
# its writes are coalesced. A program's rays are neighbours and have similar lengths in the cube, so few lanes idle.
# The interpreter's time is proportional to the number of operations, whatever their size.
RAYS = 512 if INTERPRETED else 16
STEPS = 32
# Samples of one program that computes positions.
POINTS = 4096 if INTERPRETED else 512


def march_triton(lines: Lines, step: float, occupancy: OccupancyGrid) -> tuple[Tensor, Fill]:
    """Counts the samples of every ray, then writes them; implements ``types.March`` without host synchronisation.

    Raises InputError for tensors that are not on a GPU, except in Triton's interpreter.
    """
    check_device(lines.near, "backend.sampler")
    n_rays, resolution = lines.near.shape[0], occupancy.resolution
    arguments = (
        lines.origins.contiguous(),
        lines.directions.contiguous(),
        lines.near.contiguous(),
        lines.far.contiguous(),
        lines.shift.contiguous(),
        float(step),
        occupancy.occupied,
        resolution / (2 * occupancy.radius),
        resolution / 2,
        resolution,
        n_rays,
    )
    programs = (triton.cdiv(n_rays, RAYS),)
    counts = torch.empty(n_rays, dtype=torch.int64, device=lines.near.device)
    launch(_count, programs, *arguments, counts, RAYS=RAYS, STEPS=STEPS)
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))

    def fill(total: int) -> tuple[Tensor, Tensor]:
        ray_indices, t_mids = counts.new_empty(total), lines.near.new_empty(total)
        launch(_fill, programs, *arguments, offsets, ray_indices, t_mids, RAYS=RAYS, STEPS=STEPS)
        return ray_indices, t_mids

    return offsets, fill


def points_triton(samples: RaySamples, rays: Rays, origin_distance: Tensor) -> tuple[Tensor, Tensor]:
    """The bits of ``sampling.sample_points`` from one pass over the samples.

    ``origin_distance`` [R] is how far each ray's origin is from the world's.
    """
    check_device(rays.origins, "backend.sampler")
    count = samples.t_starts.shape[0]
    positions, depth = rays.origins.new_empty(count, 3), rays.origins.new_empty(count)
    launch(
        _points,
        (triton.cdiv(count, POINTS),),
        rays.origins.contiguous(),
        rays.directions.contiguous(),
        origin_distance,
        samples.t_starts.contiguous(),
        samples.t_ends.contiguous(),
        samples.ray_indices.contiguous(),
        positions,
        depth,
        count,
        BLOCK=POINTS,
    )
    return positions, depth


# A tile of RAYS times STEPS candidates is one axis, with the steps of a ray adjacent: Triton's versions differ in which
# of two axes is laid along the threads of a warp.


@triton.jit
def _rays_of(lane, n_rays, RAYS: tl.constexpr, STEPS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The ray of each candidate of this program, and whether it exists."""
    ray = tl.program_id(0).to(tl.int64) * RAYS + lane // STEPS
    return ray, ray < n_rays


@triton.jit
def _axis(origins, directions, ray, inside, axis):  # type: ignore[no-untyped-def]
    """Origin and direction of the rays along one axis."""
    origin = tl.load(origins + 3 * ray + axis, mask=inside, other=0.0)
    return origin, tl.load(directions + 3 * ray + axis, mask=inside, other=0.0)


@triton.jit
def _span(near, far, shift, step, ray, inside):  # type: ignore[no-untyped-def]
    """Entry, exit and shift of the rays, and an upper bound on the candidates of the longest one."""
    begin = tl.load(near + ray, mask=inside, other=0.0)
    end = tl.load(far + ray, mask=inside, other=0.0)
    candidates = (end - begin) / step
    most = tl.max(tl.where(candidates > 0, candidates, 0.0), axis=0).to(tl.int32) + 2
    return begin, end, tl.load(shift + ray, mask=inside, other=0.0), most


@triton.jit
def _cell(origin, direction, t, scale, half, resolution):  # type: ignore[no-untyped-def]
    """The cell along one axis of a point of the ray; outside the cube, the border cell."""
    cell = tl.floor((origin + t * direction) * scale + half)
    # Comparisons with NaN are false: a NaN gets cell 0.
    cell = tl.where(cell > 0, cell, 0.0)
    return tl.where(cell < resolution - 1, cell, resolution - 1.0).to(tl.int32)


@triton.jit(do_not_specialize=["n_rays"])
def _count(  # type: ignore[no-untyped-def]
    origins, directions, near, far, shift, step, occupied, scale, half, resolution, n_rays, counts,
    RAYS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    lane = tl.arange(0, RAYS * STEPS)
    ray, inside = _rays_of(lane, n_rays, RAYS, STEPS)
    x, to_x = _axis(origins, directions, ray, inside, 0)
    y, to_y = _axis(origins, directions, ray, inside, 1)
    z, to_z = _axis(origins, directions, ray, inside, 2)
    begin, end, late, most = _span(near, far, shift, step, ray, inside)
    found = tl.zeros([RAYS * STEPS], tl.int32)
    for first in range(0, most, STEPS):
        t = begin + ((first + lane % STEPS).to(tl.float32) + late) * step
        i = _cell(x, to_x, t, scale, half, resolution)
        j = _cell(y, to_y, t, scale, half, resolution)
        k = _cell(z, to_z, t, scale, half, resolution)
        keep = tl.load(occupied + (i * resolution + j) * resolution + k, mask=t < end, other=False)
        found += keep.to(tl.int32)
    own = tl.program_id(0).to(tl.int64) * RAYS + tl.arange(0, RAYS)
    total = tl.sum(tl.reshape(found, [RAYS, STEPS]), axis=1)
    tl.store(counts + own, total.to(tl.int64), mask=own < n_rays)


@triton.jit(do_not_specialize=["n_rays"])
def _fill(  # type: ignore[no-untyped-def]
    origins, directions, near, far, shift, step, occupied, scale, half, resolution, n_rays, offsets, ray_indices,
    t_mids, RAYS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """As ``_count``, but writes the samples, each ray's from its offset on."""
    lane = tl.arange(0, RAYS * STEPS)
    ray, inside = _rays_of(lane, n_rays, RAYS, STEPS)
    x, to_x = _axis(origins, directions, ray, inside, 0)
    y, to_y = _axis(origins, directions, ray, inside, 1)
    z, to_z = _axis(origins, directions, ray, inside, 2)
    begin, end, late, most = _span(near, far, shift, step, ray, inside)
    own = tl.program_id(0).to(tl.int64) * RAYS + tl.arange(0, RAYS)
    place = tl.load(offsets + own, mask=own < n_rays, other=0)
    for first in range(0, most, STEPS):
        t = begin + ((first + lane % STEPS).to(tl.float32) + late) * step
        i = _cell(x, to_x, t, scale, half, resolution)
        j = _cell(y, to_y, t, scale, half, resolution)
        k = _cell(z, to_z, t, scale, half, resolution)
        keep = tl.load(occupied + (i * resolution + j) * resolution + k, mask=t < end, other=False)
        kept = tl.reshape(keep.to(tl.int32), [RAYS, STEPS])
        at = tl.reshape(place[:, None] + (tl.cumsum(kept, axis=1) - kept), [RAYS * STEPS])
        tl.store(ray_indices + at, ray, mask=keep)
        tl.store(t_mids + at, t, mask=keep)
        place += tl.sum(kept, axis=1)


@triton.jit(do_not_specialize=["count"])
def _points(  # type: ignore[no-untyped-def]
    origins, directions, origin_distance, t_starts, t_ends, ray_indices, positions, depth, count, BLOCK: tl.constexpr
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    ray = tl.load(ray_indices + at, mask=inside, other=0)
    t = (tl.load(t_starts + at, mask=inside, other=0.0) + tl.load(t_ends + at, mask=inside, other=0.0)) * 0.5
    tl.store(depth + at, t - tl.load(origin_distance + ray, mask=inside, other=0.0), mask=inside)
    for axis in tl.static_range(3):
        origin, direction = _axis(origins, directions, ray, inside, axis)
        tl.store(positions + 3 * at + axis, origin + direction * t, mask=inside)
