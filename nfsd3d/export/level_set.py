"""Where a density field becomes a surface: the level that views show, and what they do not see.

Densities range over several orders of magnitude within a voxel, where linear interpolation between two samples would
put every crossing next to the lower one. What varies smoothly is the value before the softplus: a level set here is
where its difference to that of the level is 0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import scipy.ndimage
import torch
from numpy.typing import NDArray
from torch import Tensor

from nfsd3d.errors import InputError
from nfsd3d.export.mesh import FloatArray
from nfsd3d.export.visibility_numba import look
from nfsd3d.generators.nerf.launch_numba import launch

LIMIT = 64.0
"""Values before the softplus are clipped to the level's +-this: below it a float32 softplus tells nothing apart, and
where a field steps from nothing to solid within a voxel, the symmetry puts the surface half-way between the samples."""

CANDIDATE_LEVELS = 24

VIEWS = 12
"""Directions, spread evenly, of the rays that levels are compared with."""

SAMPLES = 2
"""On those rays, in a voxel's edge."""

MISS = 8.0
"""Voxels that a ray counts which shows something where the level set is not, or the other way round."""

DIRECTIONS = 64
"""From which a field is looked at to find what is hidden."""

STEEPNESS = 40.0
"""Of the side of what is hidden, before the softplus and per coarse cell: about what a sharp field has."""

POINTS_PER_BATCH = 2**18

Density = Callable[[Tensor], Tensor]
"""[N] densities (per world unit) at the world points [N,3]."""


@dataclass(frozen=True)
class DensityGrid:
    """``values`` [n,n,n] densities (per world unit) at the points linspace(-radius, radius, n) of each axis."""

    values: FloatArray
    radius: float

    @property
    def spacing(self) -> float:
        """Distance between neighbouring samples, in world units."""
        return 2 * self.radius / (self.values.shape[0] - 1)


@torch.no_grad()
def evaluate(density: Density, points: FloatArray, device: torch.device | str = "cpu") -> FloatArray:
    """[N] the density at world ``points`` [N,3], in batches.

    Raises:
        InputError: a density is not finite.
    """
    parts = [
        density(torch.from_numpy(points[start : start + POINTS_PER_BATCH]).to(device)).float().cpu().numpy()
        for start in range(0, len(points), POINTS_PER_BATCH)
    ]
    values = np.concatenate(parts) if parts else np.empty(0, np.float32)
    if not np.isfinite(values).all():
        raise InputError(
            f"the density field holds values that are not finite ({np.count_nonzero(~np.isfinite(values))} of "
            f"{len(values)} samples): export an earlier checkpoint"
        )
    return values


def sample_density(density: Density, radius: float, resolution: int, device: torch.device | str = "cpu") -> DensityGrid:
    """``density`` on ``resolution``^3 points.

    Raises:
        InputError: a density is not finite.
    """
    axis = np.linspace(-radius, radius, resolution, dtype=np.float32)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    values = evaluate(density, points, device)
    return DensityGrid(values.reshape(resolution, resolution, resolution), radius)


def visible_level(grid: DensityGrid, hidden: NDArray[np.bool_]) -> float:
    """The density whose level set lies closest to the surface that volume rendering shows.

    A ray is stopped where its transmittance exp(-integral of density) has fallen to one half; rays that never fall
    to it show the background. What it shows begins earlier: where the density that stops it would have to begin to
    do so alone (the depth of one half lies inside the solid, the deeper the softer the field). Parallel rays in
    :data:`VIEWS` directions are compared with the depth at which the same ray first enters {density > level} or what
    is ``hidden`` [n,n,n]; the level with the smallest mean disagreement is returned. Disagreement is the distance of
    both depths, at most :data:`MISS`; it is that where only one of the two hits. So the silhouettes decide first, the
    place of the surface second. Directions along the axes alone would not do: rays that graze the flat sides of a soft
    box are stopped far outside of what every other view shows.

    Raises:
        InputError: no ray becomes opaque (an empty field).
    """
    views = [_view(grid, hidden, direction) for direction in spread_directions(VIEWS)]
    if all((view.shown < 0).all() for view in views):
        raise InputError(
            f"the density field is empty: {density_range(grid)}, and no ray through it becomes opaque; train longer, "
            "lower train.regularizers.sparsity, or choose a threshold inside that range (--threshold, export.threshold)"
        )
    smallest, largest = float(grid.values.min()), float(grid.values.max())
    # Below ln 2 / (2 radius) even a ray through the whole cube would stay more than half transparent.
    smallest = min(max(smallest, math.log(2) / (2 * grid.radius)), largest / 2)
    views = [view.above(smallest) for view in views]
    for _ in range(2):  # over all levels, then around the best one
        levels = np.geomspace(smallest, largest, CANDIDATE_LEVELS + 2)
        best = 1 + int(np.argmin([sum(view.disagreement(level) for view in views) for level in levels[1:-1]]))
        smallest, largest = levels[best - 1], levels[best + 1]
    return float(levels[best])


@dataclass(frozen=True)
class _View:
    """R parallel rays through a grid, of K samples, ``1 / SAMPLES`` of a voxel's edge apart.

    ``density`` and ``hidden`` [K,R] along them; ``shown`` [R] the sample at which what they show begins, or -1.
    """

    density: FloatArray
    hidden: NDArray[np.bool_]
    shown: NDArray[np.float64]

    def above(self, level: float) -> "_View":
        """Without the rays that meet nothing, at this level or a higher one."""
        meets = ((self.density > level) | self.hidden).any(axis=0)
        return _View(self.density[:, meets], self.hidden[:, meets], self.shown[meets])

    def disagreement(self, level: float) -> float:
        """The sum over rays of the capped distance (voxels) between the level's solid and what they show."""
        entered = _first_true((self.density > level) | self.hidden)
        hit, shown = entered >= 0, self.shown >= 0
        distance = np.minimum(np.abs(entered - self.shown) / SAMPLES, MISS)
        return float(distance[hit & shown].sum() + MISS * np.count_nonzero(hit ^ shown))


def _view(grid: DensityGrid, hidden: NDArray[np.bool_], direction: NDArray[np.float64]) -> _View:
    """Rays through every third voxel in a ``direction`` [3]; before its softplus the density is linear in between."""
    ahead = torch.from_numpy(direction).float()
    right = torch.nn.functional.normalize(torch.linalg.cross(ahead, torch.eye(3)[ahead.abs().argmin()]), dim=0)
    up = torch.linalg.cross(ahead, right)
    reach = math.ceil(math.sqrt(3) * grid.radius / grid.spacing)  # voxels, to the cube's corners
    depth = torch.arange(-reach * SAMPLES, reach * SAMPLES + 1) * (grid.spacing / SAMPLES)
    across = torch.arange(-reach, reach + 1, 3) * grid.spacing
    places = depth[:, None, None, None] * ahead + across[:, None, None] * right + across[:, None] * up
    known = np.stack([inverse_softplus(grid.values).astype(np.float32), hidden.astype(np.float32)])
    # grid_sample counts axes from the last one on.
    lookup = partial(torch.nn.functional.grid_sample, padding_mode="border", align_corners=True)
    before, covered = lookup(torch.from_numpy(known)[None], (places / grid.radius).flip(-1)[None])[0].flatten(2)
    inside = (places.abs().amax(-1) <= grid.radius).flatten(1)
    density = (torch.nn.functional.softplus(before) * inside).numpy()
    return _View(density, ((covered > 0.5) & inside).numpy(), _shown(density * np.float32(grid.spacing / SAMPLES)))


def hidden_voxels(grid: DensityGrid) -> NDArray[np.bool_]:
    """[n,n,n] the voxels that no view from outside sees, of :data:`DIRECTIONS` spread evenly around the world.

    Training looks at what views show. Behind that a field may be anything, and mostly is fog: thin enough to lie below
    any level at which the surface is sharp, and yet too much of it to look through. Left as it is, the level set's
    inside would be hollow, and open wherever the fog reaches the outside (the floor of a house that no camera sees).
    """
    directions = spread_directions(DIRECTIONS)
    lengths = 1 / np.abs(directions).max(axis=1)  # each step enters the next layer of voxels
    steps = np.arange(grid.values.shape[0] + 1)
    paths = np.round((directions * lengths[:, None])[:, None] * steps[:, None]).astype(np.int64)
    seen = torch.zeros(grid.values.shape, dtype=torch.bool)
    optical = torch.from_numpy(grid.values * np.float32(grid.spacing))
    launch(look, optical, torch.from_numpy(paths), torch.from_numpy(lengths.astype(np.float32)), seen)
    return ~seen.numpy()


def spread_directions(count: int) -> NDArray[np.float64]:
    """[count,3] unit vectors spread evenly over the sphere, on a Fibonacci spiral."""
    index = np.arange(count)
    height = 1 - 2 * (index + 0.5) / count
    turn, flat = index * math.pi * (3 - math.sqrt(5)), np.sqrt(1 - height**2)
    return np.stack([flat * np.cos(turn), flat * np.sin(turn), height], axis=-1)


def _shown(optical: NDArray[np.float32]) -> NDArray[np.float64]:
    """[R] the sample at which what rays show begins, through samples [K,R] of this optical thickness; or -1."""
    total = np.cumsum(optical, axis=0, dtype=np.float64)
    stopped = _first_true(total > math.log(2))
    index = stopped.clip(min=0)[None]
    own = np.take_along_axis(optical, index, axis=0).astype(np.float64)
    before = np.take_along_axis(total, index, axis=0) - own
    begins = (index - before / own.clip(min=np.finfo(np.float64).tiny))[0]
    return np.where(stopped >= 0, begins.clip(min=0), -1.0)


def _first_true(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Index of the first True along the first axis, or -1."""
    return np.where(mask.any(axis=0), mask.argmax(axis=0), -1)


def density_range(grid: DensityGrid) -> str:
    """The range of densities in words, for messages."""
    return f"densities lie between {grid.values.min():.3g} and {grid.values.max():.3g}"


@dataclass(frozen=True)
class LevelSet:
    """What is to become a surface: {``density`` > ``level``}, and what is hidden.

    ``hidden`` [n,n,n] in [0,1], over the world's cube, is above a half where no view sees; None for the density alone.
    """

    density: Density
    level: float
    hidden: FloatArray | None
    radius: float
    device: torch.device | str = "cpu"

    def offset(self, points: FloatArray) -> FloatArray:
        """[N] above 0 inside, at world ``points`` [N,3]: the density before its softplus, less the level's.

        Raises:
            InputError: a density is not finite.
        """
        offset = before_softplus(evaluate(self.density, points, self.device), self.level)
        if self.hidden is None:
            return offset
        place = (points.T.astype(np.float32) / self.radius + 1) * ((self.hidden.shape[0] - 1) / 2)
        hidden = scipy.ndimage.map_coordinates(self.hidden, place, order=1, mode="nearest", prefilter=False)
        return np.maximum(offset, STEEPNESS * (hidden - 0.5))

    def on(self, grid: DensityGrid) -> FloatArray:
        """[n,n,n] the offset at the points of a ``grid`` of the density (the one that ``hidden`` was found on)."""
        offset = before_softplus(grid.values, self.level)
        return offset if self.hidden is None else np.maximum(offset, STEEPNESS * (self.hidden - 0.5))


def visible_level_set(density: Density, grid: DensityGrid, device: torch.device | str = "cpu") -> LevelSet:
    """The solid that views show, found from the field itself: the visible level, and what is hidden behind it.

    Raises:
        InputError: an empty field.
    """
    hidden = hidden_voxels(grid)
    level = visible_level(grid, hidden)
    # Blurred over a voxel, so that the side of what is hidden has no steps where it is what one sees.
    smooth = scipy.ndimage.gaussian_filter(hidden.astype(np.float32), 1.0)
    return LevelSet(density, level, smooth, grid.radius, device)


def before_softplus(density: NDArray, level: float) -> FloatArray:
    """What the softplus made ``density`` of, less the same of the level; above 0 where the density is above it."""
    offset = inverse_softplus(density) - inverse_softplus(np.float64(level))
    return offset.clip(-LIMIT, LIMIT).astype(np.float32)


def inverse_softplus(density: NDArray | np.floating) -> NDArray:
    """log(exp(density) - 1), without overflow; densities are taken as at least 1e-30, where it is -69."""
    density = np.maximum(np.asarray(density, dtype=np.float64), 1e-30)
    return density + np.log(-np.expm1(-density))
