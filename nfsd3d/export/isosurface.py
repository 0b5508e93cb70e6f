"""Marching cubes on a density field: which level, which parts, which way out.

The density is sampled on a regular grid over the cube [-radius, radius]^3. Densities range over several orders of
magnitude within a voxel, where linear interpolation between two samples would put every vertex next to the lower one.
What varies smoothly is the value before the softplus: marching cubes runs on its difference to that of the level,
which has the same level set.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.ndimage
import torch
from numpy.typing import NDArray
from skimage.measure import marching_cubes
from torch import Tensor

from nfsd3d.errors import InputError
from nfsd3d.export.mesh import FloatArray

LIMIT = 64.0
"""Values before the softplus are clipped to the level's +-this: below it a float32 softplus tells nothing apart, and
where a field steps from nothing to solid within a voxel, the symmetry puts the surface half-way between the samples."""

CANDIDATE_LEVELS = 32
MAX_SAMPLES_FOR_LEVEL = 128
"""Per axis: a level is one number, for which a coarse grid suffices."""

POINTS_PER_BATCH = 2**18


@dataclass(frozen=True)
class DensityGrid:
    """``values`` [n,n,n] densities (per world unit) at the points linspace(-radius, radius, n) of each axis."""

    values: FloatArray
    radius: float

    @property
    def spacing(self) -> float:
        """Distance between neighbouring samples, in world units."""
        return 2 * self.radius / (self.values.shape[0] - 1)


@dataclass(frozen=True)
class Surface:
    """A closed level set in world units: ``vertices`` [V,3], ``faces`` [F,3], ``normals`` [V,3], and its ``level``."""

    vertices: FloatArray
    faces: NDArray[np.int32]
    normals: FloatArray
    level: float


@torch.no_grad()
def sample_density(
    density: Callable[[Tensor], Tensor], radius: float, resolution: int, device: torch.device | str = "cpu"
) -> DensityGrid:
    """``density`` (a function of [N,3] world points) on ``resolution``^3 points, evaluated in batches.

    Raises:
        InputError: a density is not finite.
    """
    axis = torch.linspace(-radius, radius, resolution, device=device)
    slab = max(1, POINTS_PER_BATCH // resolution**2)
    slabs = []
    for start in range(0, resolution, slab):
        points = torch.cartesian_prod(axis[start : start + slab], axis, axis)
        slabs.append(density(points).float().cpu().numpy())
    values = np.concatenate(slabs).reshape(resolution, resolution, resolution)
    if not np.isfinite(values).all():
        raise InputError("the density field holds values that are not finite: export an earlier checkpoint")
    return DensityGrid(values, radius)


def visible_level(grid: DensityGrid) -> float:
    """The density whose level set lies closest to the surface that volume rendering shows.

    A ray is stopped where its transmittance exp(-integral of density) has fallen to one half; rays that never fall
    to it show the background. What it shows begins earlier: where the density that stops it would have to begin to
    do so alone (the depth of one half lies inside the solid, the deeper the softer the field). The six families of
    axis-aligned rays through the grid are compared with the depth at which the same ray first enters {density >
    level}; the level with the smallest mean disagreement is returned. Disagreement is the distance of both depths, at
    most 8 voxels; it is those 8 voxels where only one of the two hits. So the silhouettes decide first, the place of
    the surface second.

    Raises:
        InputError: no ray becomes opaque (an empty field).
    """
    stride = math.ceil(grid.values.shape[0] / MAX_SAMPLES_FOR_LEVEL)
    values = grid.values[::stride, ::stride, ::stride].astype(np.float64)
    optical = values * grid.spacing * stride
    visible = []
    for axis in range(3):
        for direction in (optical, np.flip(optical, axis)):
            visible.append(_shown_depth(direction, axis))
    if all((depth < 0).all() for depth in visible):
        raise InputError(f"the density field is empty: {_density_range(grid)}, and no ray through it becomes opaque")
    largest = values.max()
    # Below ln 2 / (2 radius) even a ray through the whole cube would stay more than half transparent.
    smallest = min(max(values.min(), math.log(2) / (2 * grid.radius)), largest / 2)
    levels = np.geomspace(smallest, largest, CANDIDATE_LEVELS + 2)[1:-1]
    return float(min(levels, key=lambda level: _disagreement(values, float(level), visible)))


def _shown_depth(optical: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Depth in voxels, along ``axis``, of what rays through voxels of this optical thickness show; -1 for nothing."""
    total = np.cumsum(optical, axis)
    stopped = _first_true(total > math.log(2), axis)
    index = np.expand_dims(stopped.clip(min=0), axis)
    own = np.take_along_axis(optical, index, axis)
    before = np.take_along_axis(total, index, axis) - own
    begins = (index - before / own.clip(min=np.finfo(np.float64).tiny)).squeeze(axis)
    return np.where(stopped >= 0, begins.clip(min=0), -1.0)


def _disagreement(values: NDArray[np.float64], level: float, visible: list[NDArray[np.float64]], cap: int = 8) -> float:
    """Mean over rays of the capped distance (voxels) between the level set's first crossing and the visible depth."""
    inside = values > level
    total = 0.0
    for index, shown in enumerate(visible):
        axis, flipped = divmod(index, 2)
        crossed = _first_true(np.flip(inside, axis) if flipped else inside, axis)
        both = (crossed >= 0) & (shown >= 0)
        one = (crossed >= 0) ^ (shown >= 0)
        total += float(np.minimum(np.abs(crossed - shown), cap)[both].sum() + cap * one.sum())
    return total / sum(shown.size for shown in visible)


def _first_true(mask: NDArray[np.bool_], axis: int) -> NDArray[np.int64]:
    """Index of the first True along ``axis``, or -1."""
    return np.where(mask.any(axis), mask.argmax(axis), -1)


def _density_range(grid: DensityGrid) -> str:
    return f"densities lie between {grid.values.min():.3g} and {grid.values.max():.3g}"


def solid_mask(grid: DensityGrid, level: float, min_component: float = 0.02) -> NDArray[np.bool_]:
    """[n,n,n] the voxels of the solid {density > level}, without floaters and without closed cavities.

    Connected components smaller than ``min_component`` of the largest one are floaters. Cavities that no path from
    outside reaches cannot be seen, and training never sees them either: they are filled.
    """
    neighbours = np.ones((3, 3, 3), dtype=bool)
    labels, count = scipy.ndimage.label(grid.values > level, structure=neighbours)
    if count == 0:
        return np.zeros_like(labels, dtype=bool)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    kept = (sizes >= min_component * sizes.max())[labels] & (labels > 0)
    return scipy.ndimage.binary_fill_holes(kept)


def extract_surface(grid: DensityGrid, level: float, min_component: float = 0.02) -> Surface:
    """The closed surface of the solid at ``level``, wound outward, with normals from the density gradient.

    The grid is padded with empty space, so that a solid that touches the bounds is closed there. The gradient is
    that of the field smoothed over one voxel: hash grids are rough below that, and a mesh has no room for it.

    Raises:
        InputError: nothing, or everything, lies above the level; the message gives the range of densities.
    """
    solid = solid_mask(grid, level, min_component)
    if not solid.any() or (grid.values > level).all():
        state = "full: all" if solid.any() else "empty: none"
        raise InputError(
            f"the density field is {state} of it lies above the threshold {level:.4g} ({_density_range(grid)}); "
            "choose a threshold inside that range, or train longer"
        )
    offset = (inverse_softplus(grid.values) - inverse_softplus(np.float64(level))).clip(-LIMIT, LIMIT)
    # Samples that cavity filling or floater removal moved to the other side say so as clearly as they can.
    offset[solid & (offset <= 0)] = LIMIT
    offset[~solid & (offset > 0)] = -LIMIT
    padded = np.pad(offset, 1, constant_values=-LIMIT)
    corners, faces, _, _ = marching_cubes(padded, level=0.0, gradient_direction="ascent")
    gradient = np.gradient(scipy.ndimage.gaussian_filter(padded, sigma=1.0, mode="nearest"))
    slope = np.stack([scipy.ndimage.map_coordinates(part, corners.T, order=1) for part in gradient], axis=-1)
    normals = outward_normals(corners, faces, -slope)
    vertices = (corners - 1) * grid.spacing - grid.radius
    return Surface(vertices.astype(np.float32), faces.astype(np.int32), normals, level)


def inverse_softplus(density: NDArray | np.floating) -> NDArray:
    """log(exp(density) - 1), without overflow; densities are taken as at least 1e-30, where it is -69."""
    density = np.maximum(np.asarray(density, dtype=np.float64), 1e-30)
    return density + np.log(-np.expm1(-density))


def outward_normals(vertices: NDArray, faces: NDArray, preferred: NDArray) -> FloatArray:
    """[V,3] unit normals: ``preferred`` where it points to the same side as the faces, else the faces' own.

    The gradient of a field vanishes or turns on ridges thinner than a voxel; the mean of the adjacent faces,
    weighted by area, does not.
    """
    corner = vertices[faces]
    areas = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    geometric = np.zeros(vertices.shape)
    for k in range(3):
        np.add.at(geometric, faces[:, k], areas)
    geometric = _unit(geometric)
    preferred = _unit(preferred)
    agrees = (geometric * preferred).sum(-1, keepdims=True) > 0.2
    return np.where(agrees, preferred, geometric).astype(np.float32)


def _unit(vectors: NDArray) -> NDArray:
    """Vectors of length 1; (near) zero vectors become +z, because mesh formats allow no zero normal."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    up = np.array([0.0, 0.0, 1.0])
    return np.where(length > 1e-12, vectors / np.maximum(length, 1e-12), up)
