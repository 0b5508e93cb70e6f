"""Ray marching: samples at equal steps along each ray, in occupied cells only (packed samples, as in nerfacc).

``march_torch`` is the reference implementation. ``numba_kernels`` and ``triton_kernels`` give the same bits faster, on
a CPU and on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nfsd3d.device import move
from nfsd3d.errors import InputError
from nfsd3d.generators.nerf.occupancy import OccupancyGrid
from nfsd3d.generators.nerf.points import EncodedPoints
from nfsd3d.generators.nerf.sampling.types import Fill, Lines, March
from nfsd3d.shared_batch import SharedGenerator, draw

if TYPE_CHECKING:
    from nfsd3d.views.cameras import Rays

# Candidates (rays x steps) that the torch reference tests together; bounds its memory.
CHUNK = 2**22


@dataclass(frozen=True)
class RaySamples:
    """S intervals on ``n_rays`` rays, packed: sorted by ray, then by depth. A ray may have none.

    ``ray_indices`` [S] int64; ``t_starts``, ``t_ends`` [S] distances from the rays' origins in world units;
    ``offsets`` [n_rays + 1] int64: the samples of ray r are ``offsets[r]:offsets[r + 1]``. ``encoded`` are their
    positions in the field, if these are encoded already, with the parameters of that moment.
    """

    ray_indices: Tensor
    t_starts: Tensor
    t_ends: Tensor
    offsets: Tensor
    encoded: EncodedPoints | None = None

    @property
    def n_rays(self) -> int:
        """Number of rays, including those without samples."""
        return self.offsets.shape[0] - 1

    @property
    def t_mids(self) -> Tensor:
        """[S] middles of the intervals."""
        return (self.t_starts + self.t_ends) / 2

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Its tensors, without the encoding."""
        return self.ray_indices, self.t_starts, self.t_ends, self.offsets

    def where(self, kept: Tensor) -> RaySamples:
        """The samples that are ``kept`` [S] bool, of as many rays, without an encoding."""
        offsets = torch.nn.functional.pad(kept.cumsum(0), (1, 0))[self.offsets]
        indices = kept.nonzero()[:, 0]  # only once: synchronises with a GPU
        return RaySamples(self.ray_indices[indices], self.t_starts[indices], self.t_ends[indices], offsets)

    def positions(self, rays: Rays) -> Tensor:
        """[S,3] world positions of the intervals' middles."""
        return self.of_rays(rays.origins) + self.of_rays(rays.directions) * self.t_mids[:, None]

    def of_rays(self, values: Tensor) -> Tensor:
        """[S,...] for each sample the entry of its ray in ``values`` [R,...]."""
        return values.index_select(0, self.ray_indices)  # of rows on a CPU, three times as fast as indexing


@torch.no_grad()
def sample_points(samples: RaySamples, rays: Rays, *, backend: str = "torch") -> tuple[Tensor, Tensor]:
    """World positions [S,3] of the intervals' middles, and depths [S], relative to the world's origin; no gradient.

    A depth is the distance from the ray's origin less the distance between both origins: a small number, for the
    precision of its variance.
    """
    origin_distance = rays.origins.norm(dim=-1)
    if backend == "numba":
        from nfsd3d.generators.nerf.sampling.numba_kernels import points_numba

        return points_numba(samples, rays, origin_distance)
    if backend == "triton":
        from nfsd3d.generators.nerf.sampling.triton_kernels import points_triton

        return points_triton(samples, rays, origin_distance)
    return samples.positions(rays), samples.t_mids - samples.of_rays(origin_distance)


def step_length(radius: float, samples_per_ray: int) -> float:
    """World units between samples, if the cube's diagonal has ``samples_per_ray`` of them."""
    return 2 * math.sqrt(3) * radius / samples_per_ray


def sample_rays(
    rays: Rays,
    occupancy: OccupancyGrid,
    *,
    step_size: float,
    max_samples: int,
    jitter: torch.Generator | None = None,
    backend: str = "torch",
) -> RaySamples:
    """The intervals of ``step_size`` world units whose middles lie in occupied cells.

    The first sample of a ray is half a step inside the cube, or a random part of one, drawn from ``jitter`` (a
    generator on the CPU). At most ``max_samples`` samples are returned: if there were more, the step is lengthened for
    all rays, so that no ray is truncated. Of a batch that processes share (a `SharedGenerator`), all samples count.

    Raises InputError for an unknown ``backend`` (the keys of SAMPLERS) or one that is not installed, and if
    ``max_samples`` leaves fewer than two steps across the cube.
    """
    if backend not in SAMPLERS:
        raise InputError(f"backend.sampler={backend}: unknown; choose one of {', '.join(SAMPLERS)}")
    march = SAMPLERS[backend]()
    near, far = intersect_cube(rays, occupancy.radius)
    if jitter is None:
        shift = torch.full_like(near, 0.5)
    else:
        shift = 1 - move(draw(torch.rand, (len(rays),), jitter), near.device).to(near.dtype)
    lines = Lines(rays.origins, rays.directions, near, far, shift)
    step = step_size
    while True:
        offsets, fill = march(lines, step, occupancy)
        total = of_batch = int(offsets[-1])
        if isinstance(jitter, SharedGenerator):
            of_batch = jitter.total(total)
        if of_batch <= max_samples:
            break
        step *= max(1.02 * of_batch / max_samples, 1.05)
        if step > occupancy.radius:
            raise InputError(
                f"generator.max_samples={max_samples} is too small for {len(rays)} rays; "
                "raise it, or lower train.batch_size or train.resolution"
            )
    ray_indices, t_mids = fill(total)
    return RaySamples(ray_indices, t_mids - step / 2, t_mids + step / 2, offsets)


def intersect_cube(rays: Rays, radius: float) -> tuple[Tensor, Tensor]:
    """Distances [R] at which rays enter (at least 0) and leave the cube [-radius, radius]^3; a miss has far <= near."""
    # A ray parallel to a face crosses its plane far away, instead of at 0/0.
    directions = torch.where(rays.directions.abs() < 1e-9, 1e-9, rays.directions)
    low, high = (-radius - rays.origins) / directions, (radius - rays.origins) / directions
    near = torch.minimum(low, high).amax(-1).clamp(min=0)
    return near, torch.maximum(low, high).amin(-1)


def march_torch(lines: Lines, step: float, occupancy: OccupancyGrid) -> tuple[Tensor, Fill]:
    """The reference implementation of :data:`March`: tests every candidate of every ray."""
    n_rays = lines.near.shape[0]
    span = float((lines.far - lines.near).max()) if n_rays else 0.0
    candidates = torch.arange(max(math.ceil(span / step) + 1, 1), device=lines.near.device)
    indices, middles = [], []
    for first in range(0, n_rays, max(CHUNK // candidates.shape[0], 1)):
        part = slice(first, first + max(CHUNK // candidates.shape[0], 1))
        t = lines.near[part, None] + (candidates + lines.shift[part, None]) * step
        points = lines.origins[part, None] + t[..., None] * lines.directions[part, None]
        keep = (t < lines.far[part, None]) & is_occupied(points, occupancy)
        ray, sample = keep.nonzero(as_tuple=True)
        indices.append(ray + first)
        middles.append(t[ray, sample])
    ray_indices = torch.cat([*indices, candidates[:0]])
    counts = torch.bincount(ray_indices, minlength=n_rays)
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return offsets, lambda total: (ray_indices, torch.cat([*middles, lines.near[:0]]))


def is_occupied(points: Tensor, occupancy: OccupancyGrid) -> Tensor:
    """[...] bool: whether world ``points`` [...,3] lie in occupied cells; outside the cube the border cells count."""
    resolution = occupancy.resolution
    cells = (points * (resolution / (2 * occupancy.radius)) + resolution / 2).floor().long().clamp(0, resolution - 1)
    i, j, k = cells.unbind(-1)
    return occupancy.occupied[i, j, k]


def _torch() -> March:
    return march_torch


def _numba() -> March:
    from nfsd3d.generators.nerf.sampling.numba_kernels import march_numba

    return march_numba


def _triton() -> March:
    try:
        from nfsd3d.generators.nerf.sampling.triton_kernels import march_triton
    except ImportError as error:
        raise InputError(
            f"backend.sampler=triton: triton cannot be imported ({error}); it comes with CUDA builds of torch for "
            "Linux; or choose backend.sampler=torch"
        ) from error
    return march_triton


def _nerfacc() -> March:
    from nfsd3d.generators.nerf.sampling.nerfacc import march_nerfacc

    return march_nerfacc


SAMPLERS: dict[str, Callable[[], March]] = {
    "torch": _torch,
    "numba": _numba,
    "triton": _triton,
    "nerfacc": _nerfacc,
}
