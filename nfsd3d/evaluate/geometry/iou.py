"""Intersection over union (IoU) of a solid with the true solid of an object, after the best alignment.

A prompt determines neither size nor position and, for an object without a front, no heading. Hence these are fitted
before the comparison.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from nfsd3d.evaluate.geometry.voxels import (
    Floats,
    Solid,
    distances_to,
    grid_indices,
    grid_points,
    object_named,
    solid_of,
)
from nfsd3d.shapes.world.objects import BOUND

Inside = Callable[[Floats], NDArray[np.bool_]]
"""A function from world points [N,3] to whether each lies in a solid [N]."""

# Blur of the surfaces in the first search, in world units: it gives parts that do not overlap a gradient.
BLUR = 0.15
# Samples per axis of the tabulated distance to a true object.
TABLE = 96
# Objects without a front have four-fold symmetry about z, so headings within a quarter turn suffice.
QUARTER_TURN = math.pi / 2
HEADINGS = 3


@dataclass(frozen=True)
class Fit:
    """The best alignment of a solid with an object's true solid.

    ``iou`` in [0,1] is the largest intersection over union that was found. The true solid is turned by ``rotation``,
    then scaled by ``scale``, then shifted by ``shift`` [3] world units. ``rotation`` is in radians about z, at most an
    eighth of a turn; it is 0 for an object with a front or with rotational symmetry. ``ellipsoid`` is the IoU of the
    best axis-aligned ellipsoid with this object, a baseline. ``empty``: the solid has no filled cell; its IoU is 0 and
    its placement is meaningless.
    """

    iou: float
    scale: float
    shift: tuple[float, float, float]
    rotation: float
    ellipsoid: float
    empty: bool = False


@dataclass(frozen=True)
class _Placement:
    """A similarity transform from an object to the world: ``rotation`` about z, then scale, then shift."""

    scale: float
    shift: Floats
    rotation: float

    @classmethod
    def of(cls, parameters: Floats) -> "_Placement":
        """The placement with the search's parameters: log scale, shift [3], and the rotation if it is free."""
        rotation = float(parameters[4]) if len(parameters) > 4 else 0.0
        return cls(math.exp(parameters[0]), parameters[1:4], rotation)

    @property
    def _turn(self) -> Floats:
        cosine, sine = math.cos(self.rotation), math.sin(self.rotation)
        return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])

    def to_world(self, points: Floats) -> Floats:
        """``points`` [N,3] of the object, in world coordinates."""
        return points @ self._turn.T * self.scale + self.shift

    def to_object(self, points: Floats) -> Floats:
        """World ``points`` [N,3], in the object's coordinates."""
        return (points - self.shift) @ self._turn / self.scale


@dataclass(frozen=True)
class _Truth:
    """Precomputed quantities of an object for the search.

    ``table`` [1,1,D,H,W]: float32 signed distances at the middles of the cells of [-BOUND, BOUND]^3 (x, y, z);
    ``volume``; ``centroid`` [3]; ``corners`` [8,3] of a box around it; ``headings`` to try, in radians about z.
    """

    table: Tensor
    volume: float
    centroid: Floats
    corners: Floats
    headings: tuple[float, ...]

    def distance(self, points: Floats) -> Floats:
        """[N] interpolated signed distances of ``points`` [N,3]; outside the table, those of its border."""
        place = torch.from_numpy(points / BOUND).float().flip(-1)[None, :, None, None]
        return F.grid_sample(self.table, place, padding_mode="border", align_corners=False).flatten().numpy()


@cache
def _truth(object_name: str) -> _Truth:
    cell = 2 * BOUND / TABLE
    points = grid_points(BOUND, TABLE)
    shape = object_named(object_name)
    distances = distances_to(shape, points)
    filled = _coverage(distances, cell)
    near = points[distances < cell]
    low, high = near.min(axis=0) - cell, near.max(axis=0) + cell
    corners = np.where(grid_indices(2, 2, 2), high, low)
    turned = _Placement(1.0, np.zeros(3), QUARTER_TURN / 2).to_object(near)
    is_round = np.abs(distances_to(shape, turned) - distances[distances < cell]).max() < 1e-3
    free = not shape.has_front and not is_round
    return _Truth(
        torch.from_numpy(distances).float().reshape(1, 1, TABLE, TABLE, TABLE),
        float(filled.sum()) * cell**3,
        filled @ points / filled.sum(),
        corners,
        tuple(k * QUARTER_TURN / HEADINGS for k in range(HEADINGS)) if free else (),
    )


def fit(solid: Solid, object_name: str) -> Fit:
    """The best alignment of ``solid`` with the true object; see :class:`Fit`.

    Three rounds of Nelder-Mead: several starts on a blurred solid, the best of them on the sharp solid, and last on the
    returned quantity, the count of whole cells, which is piecewise constant.

    Raises:
        InputError: an unknown object.
    """
    shape, baseline = object_named(object_name), ellipsoid_iou(object_name)
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
    return Fit(-counted(best, partial(distances_to, shape)), place.scale, (x, y, z), rotation, baseline)


def _starts(volume: float, centroid: Floats, truth: _Truth) -> list[Floats]:
    """Initial parameters of the search: the identity, and the placement with the solid's volume and centroid."""
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
    """The share of a cell of ``width`` inside a solid, from the signed ``distance`` of its centre."""
    return (0.5 - distance / width).clip(0, 1)


def _smooth_iou(covered: float, volume: float, other_volume: float) -> float:
    """A smooth IoU, from the share of the first solid that the other one covers, and the volumes of both."""
    overlap = covered * volume
    return overlap / (volume + other_volume - overlap)


def _search(loss: Callable[[Floats], float], start: Floats, *, spread: float, evaluations: int) -> Floats:
    """The best parameters that Nelder-Mead (1965) finds for ``loss``, from ``start`` and points ``spread`` away."""
    simplex = np.concatenate([start[None], start + spread * np.eye(len(start))])
    options = {"initial_simplex": simplex, "maxfev": evaluations, "xatol": 1e-4, "fatol": 1e-5}
    return minimize(loss, start, method="Nelder-Mead", options=options).x


def _counted_iou(solid: Solid, inside: Inside, box: Floats) -> float:
    """The IoU, counted in cells, of ``solid`` and another one within the bounding box of the points ``box`` [N,3].

    The other one may extend beyond the cube of the first.
    """
    first = np.floor((box.min(axis=0) + solid.radius) / solid.cell).astype(np.int64)
    last = np.ceil((box.max(axis=0) + solid.radius) / solid.cell).astype(np.int64)
    cells = first + grid_indices(*(last - first))
    other = cells[inside((cells + 0.5) * solid.cell - solid.radius)]
    shared = other[((other >= 0) & (other < solid.resolution)).all(axis=1)]
    both = np.count_nonzero(solid.grid[tuple(shared.T)])
    return float(both / (np.count_nonzero(solid.grid) + len(other) - both))
