"""Voxel solids of a radiance field, a mesh, and the true objects.

A radiance field's solid is carved from renders: cells that no view sees through to are filled. So closed cavities count
as full, as in training and in the exported mesh. The true solids come from ``nfsd3d.shapes``.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from numpy.typing import NDArray
from torch import Tensor

from nfsd3d.errors import InputError
from nfsd3d.generators.nerf.compositing.compositing import exclusive_sum
from nfsd3d.generators.nerf.occupancy import OccupancyGrid
from nfsd3d.generators.nerf.sampling.sampling import sample_rays
from nfsd3d.shapes.world.objects import OBJECTS, ShapeObject
from nfsd3d.views.cameras import Cameras, Rays

Floats = NDArray[np.float64]

# Optical depth at a transmittance of one half.
HALF = math.log(2)
GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
# Steps of a ray per cell, at least.
STEPS_PER_CELL = 2
# Offset of the parity test's rays from the columns' centres, in cells, times irrational numbers: mesh vertices often
# lie on regular grids, and no ray may hit an edge.
JITTER = 1e-6


@dataclass(frozen=True)
class Solid:
    """``grid`` [R,R,R] (x, y, z), true where the cells of the cube [-radius, radius]^3 (world units) are filled."""

    grid: NDArray[np.bool_]
    radius: float

    @property
    def resolution(self) -> int:
        """Cells per axis."""
        return self.grid.shape[0]

    @property
    def cell(self) -> float:
        """Length of a cell's edge in world units."""
        return 2 * self.radius / self.resolution

    @property
    def volume(self) -> float:
        """Volume of the filled cells in cubic world units."""
        return float(np.count_nonzero(self.grid)) * self.cell**3

    @property
    def filled_centers(self) -> Floats:
        """[N,3] centres of the filled cells, in world units."""
        return (np.argwhere(self.grid).astype(np.float64) + 0.5) * self.cell - self.radius


def overlap(one: Solid, other: Solid) -> float:
    """The intersection over union of two solids without alignment, in [0,1]; 1 if both are empty.

    Raises:
        ValueError: their grids are not the same.
    """
    if one.grid.shape != other.grid.shape or one.radius != other.radius:
        raise ValueError("solids on different grids")
    union = np.count_nonzero(one.grid | other.grid)
    return float(np.count_nonzero(one.grid & other.grid)) / union if union else 1.0


# --- the solid of a radiance field -----------------------------------------------------------------------------------


class RadianceField(Protocol):
    """The part of a generator that carving uses; ``nfsd3d.generators.nerf.nerf.NeRF`` implements it."""

    occupancy: OccupancyGrid
    step_size: float
    sampler_backend: str

    def density(self, positions: Tensor) -> Tensor:
        """[N] densities (1/world unit) at the world points ``positions`` [N,3], without gradient."""
        ...


@torch.no_grad()
def field_solid(
    generator: RadianceField,
    radius: float,
    *,
    resolution: int = 64,
    views: int = 64,
    view_size: int = 96,
    distance: float | None = None,
    fovy: float | None = None,
) -> Solid:
    """The solid of a radiance field, by space carving: a cell is empty if one view sees through to its centre.

    The ``views`` cameras are spread evenly over all directions. One sees through to a point if no surface (see
    :func:`surface_depth`) stops the ray before it. ``distance`` (world units; default 4 ``radius``) and ``fovy``
    (radians; default: every view shows the whole cube) are the cameras'; cells outside all views are empty. Images of
    ``view_size``^2 pixels decide most cells; cells at outlines get separate rays.

    Raises:
        InputError: fewer than 1 view, 2 pixels or 1 cell, cameras that stand in the ball around the cube, or a density
            that is not finite.
    """
    distance = 4 * radius if distance is None else distance
    reach = math.sqrt(3) * radius
    if views < 1 or view_size < 2 or resolution < 1 or distance <= reach:
        raise InputError(
            f"views={views}, view_size={view_size}, resolution={resolution}, distance={distance:g}: "
            f"need views, resolution >= 1, view_size >= 2, distance > {reach:.3g}"
        )
    if fovy is None:
        # An image's bounds are the centres of its outermost pixels.
        fovy = 2 * math.atan(math.tan(math.asin(reach / distance)) * view_size / (view_size - 1))
    device = generator.occupancy.density.device
    cameras = all_around(views, view_size, distance, fovy).to(device)
    cell = 2 * radius / resolution
    step = min(generator.step_size, cell / STEPS_PER_CELL)
    axis = (torch.arange(resolution, device=device) + 0.5) * cell - radius
    centers = torch.cartesian_prod(axis, axis, axis)
    seen = torch.zeros(len(centers), dtype=torch.bool, device=device)
    uncarved = torch.arange(len(centers), device=device)
    for index in range(views):
        shown, through = look_through(generator, cameras[index], centers[uncarved], step)
        seen[uncarved] |= shown
        uncarved = uncarved[~through]
    filled = torch.zeros_like(seen)
    filled[uncarved] = seen[uncarved]
    return Solid(filled.view(resolution, resolution, resolution).cpu().numpy(), radius)


def all_around(count: int, size: int, distance: float, fovy: float) -> Cameras:
    """``count`` cameras of ``size``^2 pixels on a Fibonacci spiral from straight above to straight below the origin."""
    turn = torch.arange(count, dtype=torch.float32)
    elevation = torch.asin(1 - 2 * turn / max(count - 1, 1))
    ones, origin = torch.ones(count), torch.zeros(count, 3)
    return Cameras(turn * GOLDEN_ANGLE, elevation, ones * distance, ones * fovy, origin, origin, size, size)


def look_through(generator: RadianceField, camera: Cameras, points: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """Which of ``points`` [N,3] are in the image of ``camera`` (a batch of one), and which of them are visible.

    Both are bool [N]. A point is compared with the depths of the four pixels around it; if they disagree, with the
    depth along its own ray.
    """
    depth = surface_depth(generator, camera.rays(), step).view(1, camera.height, camera.width)
    local = (points - camera.positions) @ camera.rotations[0]
    forward = -local[:, 2]
    pixels = camera.height / 2 / torch.tan(camera.fovy / 2) / forward  # per world unit
    column = (camera.width - 1) / 2 + local[:, 0] * pixels
    row = (camera.height - 1) / 2 - local[:, 1] * pixels
    shown = (forward > 0) & (column >= 0) & (column < camera.width - 1) & (row >= 0) & (row < camera.height - 1)
    index = shown.nonzero()[:, 0]
    pixel = row[index].long(), column[index].long()
    farthest, nearest = F.max_pool2d(depth, 2, stride=1)[0][pixel], -F.max_pool2d(-depth, 2, stride=1)[0][pixel]

    # A hard surface appears up to half a step too deep, and the view with the largest error decides.
    away = local[index].norm(dim=-1) + step / 2
    through = away < nearest
    open_question = ~through & (away < farthest)
    asked = points[index[open_question]]
    rays = Rays(camera.positions.expand(len(asked), 3), F.normalize(asked - camera.positions, dim=-1))
    through[open_question] = away[open_question] < surface_depth(generator, rays, step)
    return shown, torch.zeros_like(shown).index_put((index,), through)


def surface_depth(generator: RadianceField, rays: Rays, step: float) -> Tensor:
    """[R] distance along each ray of the surface that stops it; infinite if more than half the light passes.

    The field is sampled every ``step`` world units in the generator's occupied cells, and constant in between. The
    depth of transmittance one half lies inside the solid, deeper for a softer field. The surface is ln 2 mean free
    paths of the density there before it, where a uniform medium of that density would begin.

    Raises:
        InputError: a density is not finite.
    """
    across = 2 * math.sqrt(3) * generator.occupancy.radius
    samples = sample_rays(
        rays,
        generator.occupancy,
        step_size=step,
        max_samples=len(rays) * (math.ceil(across / step) + 1),
        backend=generator.sampler_backend,
    )
    density = generator.density(samples.positions(rays))
    if not bool(density.isfinite().all()):
        raise InputError("the density field holds values that are not finite: evaluate an earlier checkpoint")
    optical = density * (samples.t_ends - samples.t_starts)
    before = exclusive_sum(optical, samples)
    dark = ((before + optical >= HALF) & (optical > 0)).nonzero()[:, 0]
    # The first sample of each ray with transmittance below one half; one past the end if there is none.
    halving = torch.full((len(rays),), len(optical), device=dark.device)
    halving.scatter_reduce_(0, samples.ray_indices[dark], dark, "amin")
    stopped = halving < len(optical)
    halving = halving[stopped]
    depth = optical.new_full((len(rays),), torch.inf)
    depth[stopped] = samples.t_starts[halving] - before[halving] / density[halving]
    return depth


# --- the solid of a mesh, and the true one ---------------------------------------------------------------------------


def mesh_solid(mesh: trimesh.Trimesh, radius: float, resolution: int = 64) -> Solid:
    """The cells with centres inside a closed mesh (z-up, world units), without its cavities.

    A point is inside if the ray straight down from it crosses the surface an odd number of times; the winding of the
    faces has no effect.

    Raises:
        InputError: fewer than 1 cell, or the mesh has holes.
    """
    _check_resolution(resolution)
    # In units of cells, from the centre of the first one.
    corners = (np.asarray(mesh.triangles, dtype=np.float64) + radius) * (resolution / (2 * radius)) - 0.5
    corners[..., :2] += JITTER * np.array([math.sqrt(2), math.sqrt(3)])
    face, column = _columns_under(corners[..., :2], resolution)
    a, b, c = (corners[face, k] for k in range(3))
    # Twice the signed areas of the triangles between the column and each edge: all of one sign inside the face.
    ab, bc, ca = (_cross(q[:, :2] - p[:, :2], column - p[:, :2]) for p, q in ((a, b), (b, c), (c, a)))
    hit = ((ab > 0) == (bc > 0)) & ((bc > 0) == (ca > 0))
    height = (bc * a[:, 2] + ca * b[:, 2] + ab * c[:, 2])[hit] / (ab + bc + ca)[hit]
    first_above = np.ceil(height).clip(0, resolution).astype(np.int64)
    shape = (resolution, resolution, resolution + 1)
    where = np.ravel_multi_index((*column[hit].T, first_above), shape)
    below = np.bincount(where, minlength=math.prod(shape)).reshape(shape).cumsum(axis=-1)
    leaks = np.count_nonzero(below[..., -1] % 2)
    if leaks:
        raise InputError(f"the mesh is not closed: {leaks} vertical lines enter it without leaving; fill its holes")
    return Solid(below[..., :-1] % 2 == 1, radius)


def _columns_under(triangles: Floats, resolution: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The integer points of [0, resolution)^2 in the bounding boxes of 2D ``triangles`` [F,3,2].

    Returns the triangle [P] and the point [P,2] of each pair.
    """
    low = np.ceil(triangles.min(axis=1)).clip(0, resolution).astype(np.int64)
    high = np.floor(triangles.max(axis=1)).clip(-1, resolution - 1).astype(np.int64)
    size = (high - low + 1).clip(min=0)
    count = size.prod(axis=1)
    triangle = np.repeat(np.arange(len(triangles)), count)
    place = np.arange(len(triangle)) - np.repeat(count.cumsum() - count, count)
    return triangle, low[triangle] + np.stack(np.divmod(place, size[triangle, 1]), axis=-1)


def _cross(u: Floats, v: Floats) -> Floats:
    return u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]


def solid_of(object_name: str, radius: float, resolution: int = 64) -> Solid:
    """The true solid of an object of the world of shapes.

    Raises:
        InputError: an unknown object, or fewer than 1 cell.
    """
    _check_resolution(resolution)
    inside = distances_to(object_named(object_name), grid_points(radius, resolution)) < 0
    return Solid(inside.reshape(resolution, resolution, resolution), radius)


def _check_resolution(resolution: int) -> None:
    if resolution < 1:
        raise InputError(f"resolution={resolution}: need at least 1 cell")


def object_named(name: str) -> ShapeObject:
    """An object of the world of shapes.

    Raises:
        InputError: there is none of this name.
    """
    if name not in OBJECTS:
        raise InputError(f"object={name}: not in the world of shapes; choose one of {', '.join(OBJECTS)}")
    return OBJECTS[name]


def grid_points(radius: float, resolution: int) -> Floats:
    """[R^3,3] the centres of the cells of a solid's grid."""
    cells = grid_indices(resolution, resolution, resolution).astype(np.float64)
    return (cells + 0.5) * (2 * radius / resolution) - radius


def grid_indices(*shape: int) -> NDArray[np.int64]:
    """[N,3] the indices of every cell of a grid of this shape, in order."""
    return np.stack(np.unravel_index(np.arange(math.prod(shape)), shape), axis=-1)


def distances_to(shape: ShapeObject, points: Floats) -> Floats:
    """[N] signed distances of ``points`` [N,3] to the object."""
    return torch.cat([shape.distance(part) for part in torch.from_numpy(points).split(2**16)]).numpy()
