"""The solid that a run made, and how well it matches the true solid of an object of the world of shapes.

A solid is a grid of filled and empty cells. That of a radiance field is what its renders show: cells that no view looks
through to are filled, so closed cavities count as full, as they do in training and in the exported mesh. The true
solids come from ``nfsd3d.shapes``. A prompt fixes neither size nor place, and where the object has no front no
heading either: the comparison is made after the best such placement.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from nfsd3d.cameras import Cameras, Rays
from nfsd3d.errors import InputError
from nfsd3d.render.compositing import exclusive_sum
from nfsd3d.render.occupancy import OccupancyGrid
from nfsd3d.render.samplers import sample_rays
from nfsd3d.shapes.objects import BOUND, OBJECTS, ShapeObject

Floats = NDArray[np.float64]
Inside = Callable[[Floats], NDArray[np.bool_]]
"""Which of the world points [N,3] lie in a solid, as [N]."""

# Optical depth at which half the light is left.
HALF = math.log(2)
GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
# Steps of a ray per cell, at least.
STEPS_PER_CELL = 2
# The parity test's rays leave the middles of the columns by this part of a cell, times irrational numbers: the
# vertices of meshes like to lie on regular grids, and no ray may run into an edge.
JITTER = 1e-6

# World units over which the first search for a placement blurs surfaces: parts that do not touch attract each other.
BLUR = 0.15
# Samples per axis of the tabulated distance to a true object.
TABLE = 96
# A quarter turn about z changes no object without a front: headings are tried, and reported, within one.
QUARTER_TURN = math.pi / 2
HEADINGS = 3


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
        """[N,3] middles of the filled cells in the world."""
        return (np.argwhere(self.grid).astype(np.float64) + 0.5) * self.cell - self.radius


@dataclass(frozen=True)
class Fit:
    """How well a solid matches an object's true one.

    ``iou`` in [0,1]: the intersection over the union of both, where the true one is turned by ``rotation`` (radians
    about z, at most an eighth of a turn; 0 where it is not free, because the object has a front, or changes nothing),
    then scaled by ``scale``, then shifted by ``shift`` [3] world units, such that it is as large as can be found.
    ``ellipsoid``: what the best axis-aligned ellipsoid reaches for this object, which a result has to beat.
    ``empty``: the solid has no filled cell; its IoU is 0 and its placement means nothing.
    """

    iou: float
    scale: float
    shift: tuple[float, float, float]
    rotation: float
    ellipsoid: float
    empty: bool = False


# --- the solid of a radiance field -----------------------------------------------------------------------------------


class RadianceField(Protocol):
    """What carving needs of a generator; ``nfsd3d.generator.nerf.NeRF`` has it."""

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
    """What views show to be solid, by carving: a cell is empty if one view looks through to its middle.

    The ``views`` cameras are spread evenly over all directions. One looks through to a point if no surface (see
    :func:`surface_depth`) stops the ray before it. ``distance`` (world units; default 4 ``radius``) and ``fovy``
    (radians; default: every view shows the whole cube) are the cameras'; what no view shows is empty. Pictures of
    ``view_size``^2 pixels settle most cells; those at outlines are settled by rays of their own.

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
        # A picture ends at the middles of its outermost pixels.
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
    """Which of ``points`` [N,3] are in the picture of ``camera`` (a batch of one), and to which of them it sees.

    Both are bool [N]. A point is compared with the depths of the four pixels around it; where they disagree, with
    that along its own ray.
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

    # A hard surface appears up to half a step behind its place, and of many views the one that errs most decides.
    away = local[index].norm(dim=-1) + step / 2
    through = away < nearest
    open_question = ~through & (away < farthest)
    asked = points[index[open_question]]
    rays = Rays(camera.positions.expand(len(asked), 3), F.normalize(asked - camera.positions, dim=-1))
    through[open_question] = away[open_question] < surface_depth(generator, rays, step)
    return shown, torch.zeros_like(shown).index_put((index,), through)


def surface_depth(generator: RadianceField, rays: Rays, step: float) -> Tensor:
    """[R] distance along each ray of the surface that stops it; infinite where more than half the light comes through.

    The field is sampled every ``step`` world units in the generator's occupied cells, and constant in between. The
    surface lies where the density that halves the light would have to begin to do so alone: before the depth at which
    half is left by ln 2 mean free paths. That depth itself lies inside the solid, the deeper the softer the field.

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
    # Of each ray the first dark sample; one past the end where there is none.
    halving = torch.full((len(rays),), len(optical), device=dark.device)
    halving.scatter_reduce_(0, samples.ray_indices[dark], dark, "amin")
    stopped = halving < len(optical)
    halving = halving[stopped]
    depth = optical.new_full((len(rays),), torch.inf)
    depth[stopped] = samples.t_starts[halving] - before[halving] / density[halving]
    return depth


# --- the solid of a mesh, and the true one ---------------------------------------------------------------------------


def mesh_solid(mesh: trimesh.Trimesh, radius: float, resolution: int = 64) -> Solid:
    """The cells whose middles lie inside a closed mesh (z-up, world units), its cavities excepted.

    A point is inside if the ray straight down from it crosses the surface an odd number of times; the winding of the
    faces does not matter.

    Raises:
        InputError: fewer than 1 cell, or the mesh has holes.
    """
    _check_resolution(resolution)
    # In units of cells, counted from the middle of the first one.
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
    """The whole points of [0, resolution)^2 in the bounding boxes of flat ``triangles`` [F,3,2].

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
    inside = _distances(_object(object_name), _grid_points(radius, resolution)) < 0
    return Solid(inside.reshape(resolution, resolution, resolution), radius)


def _check_resolution(resolution: int) -> None:
    if resolution < 1:
        raise InputError(f"resolution={resolution}: need at least 1 cell")


def _object(name: str) -> ShapeObject:
    if name not in OBJECTS:
        raise InputError(f"object={name}: not in the world of shapes; choose one of {', '.join(OBJECTS)}")
    return OBJECTS[name]


def _grid_points(radius: float, resolution: int) -> Floats:
    """[R^3,3] the middles of the cells of a solid's grid."""
    cells = _indices(resolution, resolution, resolution).astype(np.float64)
    return (cells + 0.5) * (2 * radius / resolution) - radius


def _indices(*shape: int) -> NDArray[np.int64]:
    """[N,3] the indices of every cell of a grid of this shape, in order."""
    return np.stack(np.unravel_index(np.arange(math.prod(shape)), shape), axis=-1)


def _distances(shape: ShapeObject, points: Floats) -> Floats:
    """[N] signed distances of ``points`` [N,3] to the object."""
    return torch.cat([shape.distance(part) for part in torch.from_numpy(points).split(2**16)]).numpy()


# --- comparison ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Placement:
    """An object's way into the world: turned about z by ``rotation``, then scaled, then shifted."""

    scale: float
    shift: Floats
    rotation: float

    @classmethod
    def of(cls, parameters: Floats) -> "_Placement":
        """From what a search varies: log scale, shift [3], and the rotation where there is one."""
        rotation = float(parameters[4]) if len(parameters) > 4 else 0.0
        return cls(math.exp(parameters[0]), parameters[1:4], rotation)

    @property
    def _turn(self) -> Floats:
        cosine, sine = math.cos(self.rotation), math.sin(self.rotation)
        return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])

    def to_world(self, points: Floats) -> Floats:
        """Where ``points`` [N,3] of the object come to lie."""
        return points @ self._turn.T * self.scale + self.shift

    def to_object(self, points: Floats) -> Floats:
        """The points of the object that come to lie at ``points`` [N,3]."""
        return (points - self.shift) @ self._turn / self.scale


@dataclass(frozen=True)
class _Truth:
    """What a search for a placement needs of an object.

    ``table`` [1,1,D,H,W]: float32 signed distances at the middles of the cells of [-BOUND, BOUND]^3 (x, y, z);
    ``volume``; ``centroid`` [3]; ``corners`` [8,3] of a box around it; ``headings`` to try, in radians about z.
    """

    table: Tensor
    volume: float
    centroid: Floats
    corners: Floats
    headings: tuple[float, ...]

    def distance(self, points: Floats) -> Floats:
        """[N] interpolated signed distances of ``points`` [N,3]; beyond the table those of its border."""
        place = torch.from_numpy(points / BOUND).float().flip(-1)[None, :, None, None]
        return F.grid_sample(self.table, place, padding_mode="border", align_corners=False).flatten().numpy()


@cache
def _truth(object_name: str) -> _Truth:
    cell = 2 * BOUND / TABLE
    points = _grid_points(BOUND, TABLE)
    shape = _object(object_name)
    distances = _distances(shape, points)
    filled = _coverage(distances, cell)
    near = points[distances < cell]
    low, high = near.min(axis=0) - cell, near.max(axis=0) + cell
    corners = np.where(_indices(2, 2, 2), high, low)
    turned = _Placement(1.0, np.zeros(3), QUARTER_TURN / 2).to_object(near)
    is_round = np.abs(_distances(shape, turned) - distances[distances < cell]).max() < 1e-3
    free = not shape.has_front and not is_round
    return _Truth(
        torch.from_numpy(distances).float().reshape(1, 1, TABLE, TABLE, TABLE),
        float(filled.sum()) * cell**3,
        filled @ points / filled.sum(),
        corners,
        tuple(k * QUARTER_TURN / HEADINGS for k in range(HEADINGS)) if free else (),
    )


def fit(solid: Solid, object_name: str) -> Fit:
    """The intersection over union of ``solid`` and the true object in its best place; see :class:`Fit`.

    Found by three rounds of Nelder-Mead: from several starts on a blurred solid, from the best of them on the solid
    as it is, and at last on what is returned, the count of whole cells, which has steps.

    Raises:
        InputError: an unknown object.
    """
    shape, baseline = _object(object_name), ellipsoid_iou(object_name)
    if not solid.grid.any():
        return Fit(0.0, 1.0, (0.0, 0.0, 0.0), 0.0, baseline, empty=True)
    truth, cells = _truth(object_name), solid.filled_centers

    def smooth(parameters: Floats, count: int, width: float) -> float:
        place = _Placement.of(parameters)
        distance = place.scale * truth.distance(place.to_object(cells[:: math.ceil(len(cells) / count)]))
        return -_smooth_iou(float(_coverage(distance, width).mean()), solid.volume, place.scale**3 * truth.volume)

    def counted(parameters: Floats, distance: Callable[[Floats], Floats] = truth.distance) -> float:
        place = _Placement.of(parameters)
        box = place.to_world(truth.corners)
        return -_counted_iou(solid, lambda points: distance(place.to_object(points)) < 0, box)

    def rough(parameters: Floats) -> float:
        return smooth(parameters, 3_000, max(BLUR, solid.cell))

    def fine(parameters: Floats) -> float:
        return smooth(parameters, 10_000, solid.cell)

    starts = _starts(solid.volume, cells.mean(axis=0), truth)
    best = min((_search(rough, start, spread=0.1, evaluations=60) for start in starts), key=fine)
    best = _search(fine, best, spread=0.05, evaluations=150)
    best = _search(counted, min([best, *starts], key=counted), spread=0.01, evaluations=150)
    place = _Placement.of(best)
    rotation = (place.rotation + QUARTER_TURN / 2) % QUARTER_TURN - QUARTER_TURN / 2
    x, y, z = map(float, place.shift)
    return Fit(-counted(best, partial(_distances, shape)), place.scale, (x, y, z), rotation, baseline)


def _starts(volume: float, centroid: Floats, truth: _Truth) -> list[Floats]:
    """Parameters of placements to search from: the object as it is, and with the solid's volume and centroid."""
    headings: list[tuple[float, ...]] = [(heading,) for heading in truth.headings] or [()]
    starts = []
    for heading in headings:
        plain = np.array([0.0, 0.0, 0.0, 0.0, *heading])
        matched = np.array([math.log(volume / truth.volume) / 3, 0.0, 0.0, 0.0, *heading])
        matched[1:4] = centroid - _Placement.of(matched).to_world(truth.centroid[None])[0]
        starts += [plain, matched]
    return starts


@cache
def ellipsoid_iou(object_name: str) -> float:
    """The largest intersection over union that an axis-aligned ellipsoid has with an object's true solid.

    Raises:
        InputError: an unknown object.
    """
    solid = solid_of(object_name, BOUND)
    cells = solid.filled_centers

    def radial(points: Floats, parameters: Floats) -> Floats:
        return np.linalg.norm((points - parameters[:3]) / np.exp(parameters[3:]), axis=1)

    def negative_iou(parameters: Floats) -> float:
        size = math.exp(parameters[3:].mean())
        covered = _coverage((radial(cells, parameters) - 1) * size, solid.cell)
        return -_smooth_iou(float(covered.mean()), solid.volume, 4 / 3 * math.pi * size**3)

    moments = np.concatenate([cells.mean(axis=0), np.log(math.sqrt(5) * cells.std(axis=0))])
    low, high = cells.min(axis=0), cells.max(axis=0)
    extents = np.concatenate([(low + high) / 2, np.log((high - low) / 2)])
    searches = (_search(negative_iou, start, spread=0.1, evaluations=600) for start in (moments, extents))
    best = min(searches, key=negative_iou)
    box = best[:3] + np.array([[-1.0], [1.0]]) * np.exp(best[3:])
    return _counted_iou(solid, lambda points: radial(points, best) < 1, box)


def _coverage(distance: Floats, width: float) -> Floats:
    """The share of a cell of ``width`` that lies in a solid, where its middle has this signed ``distance``."""
    return (0.5 - distance / width).clip(0, 1)


def _smooth_iou(covered: float, volume: float, other_volume: float) -> float:
    """From the share of the first solid that the other one covers, and the volumes of both."""
    overlap = covered * volume
    return overlap / (volume + other_volume - overlap)


def _search(loss: Callable[[Floats], float], start: Floats, *, spread: float, evaluations: int) -> Floats:
    """The best parameters that Nelder-Mead (1965) finds for ``loss``, from ``start`` and points ``spread`` away."""
    simplex = np.concatenate([start[None], start + spread * np.eye(len(start))])
    options = {"initial_simplex": simplex, "maxfev": evaluations, "xatol": 1e-4, "fatol": 1e-5}
    return minimize(loss, start, method="Nelder-Mead", options=options).x


def _counted_iou(solid: Solid, inside: Inside, box: Floats) -> float:
    """Intersection over union, in cells, of ``solid`` and another one within the bounds of the points ``box`` [N,3].

    The other one may leave the cube of the first.
    """
    first = np.floor((box.min(axis=0) + solid.radius) / solid.cell).astype(np.int64)
    last = np.ceil((box.max(axis=0) + solid.radius) / solid.cell).astype(np.int64)
    cells = first + _indices(*(last - first))
    other = cells[inside((cells + 0.5) * solid.cell - solid.radius)]
    shared = other[((other >= 0) & (other < solid.resolution)).all(axis=1)]
    both = np.count_nonzero(solid.grid[tuple(shared.T)])
    return float(both / (np.count_nonzero(solid.grid) + len(other) - both))
