"""The objects of the world as signed distance functions (SDFs), with the colour role of each part.

Every object fits into the ball of radius ``BOUND`` around the origin, z up, its front (where it has one) towards +x.
Distances are in world units, negative inside; some parts are lower bounds of the true distance (ellipsoids, smooth
cuts), which sphere tracing tolerates. The primitives are the standard ones, for instance
https://iquilezles.org/articles/distfunctions (formulas re-derived here for batches).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

BOUND = 1.0

RGB = tuple[float, float, float]
MAIN = None  # the role of a part that takes the composition's colours and pattern
BLACK, CREAM, ORANGE, BROWN, SLATE, GLASS, YELLOW, RED = (
    (0.07, 0.07, 0.08),
    (0.94, 0.89, 0.78),
    (0.95, 0.52, 0.08),
    (0.36, 0.21, 0.11),
    (0.36, 0.38, 0.42),
    (0.60, 0.84, 0.95),
    (0.98, 0.86, 0.25),
    (0.80, 0.10, 0.10),
)


@dataclass(frozen=True)
class Part:
    """One solid of an object.

    ``distance`` maps points [...,3] to signed distances [...]; ``color`` is a fixed linear colour, or ``MAIN``;
    ``round_center`` is the centre of the dots on round parts (None: dots lie on the faces of a box).
    """

    distance: Callable[[Tensor], Tensor]
    color: RGB | None = MAIN
    round_center: RGB | None = None


@dataclass(frozen=True)
class ShapeObject:
    """An object: its parts, and whether it has a front (seen from azimuth 0)."""

    parts: tuple[Part, ...]
    has_front: bool

    def distances(self, points: Tensor) -> Tensor:
        """[...,P] the signed distance to each part, of points [...,3]."""
        return torch.stack([part.distance(points) for part in self.parts], dim=-1)

    def distance(self, points: Tensor) -> Tensor:
        """[...] the signed distance to the object, of points [...,3]."""
        return self.distances(points).amin(dim=-1)


# --- primitives: each returns a function of points [...,3] ---------------------------------------------------------


def _offset(points: Tensor, center: RGB) -> Tensor:
    return points - points.new_tensor(center)


def _sphere(center: RGB, radius: float) -> Callable[[Tensor], Tensor]:
    return lambda p: _offset(p, center).norm(dim=-1) - radius


def _ellipsoid(center: RGB, radii: RGB) -> Callable[[Tensor], Tensor]:
    def distance(p: Tensor) -> Tensor:
        q = _offset(p, center)
        scale = q.new_tensor(radii)
        k0 = (q / scale).norm(dim=-1)
        k1 = (q / scale.square()).norm(dim=-1).clamp_min(1e-6)
        return k0 * (k0 - 1) / k1

    return distance


def _box(center: RGB, half: RGB, rounding: float = 0.02) -> Callable[[Tensor], Tensor]:
    def distance(p: Tensor) -> Tensor:
        q = _offset(p, center).abs() - p.new_tensor(half) + rounding
        return q.clamp_min(0).norm(dim=-1) + q.amax(dim=-1).clamp_max(0) - rounding

    return distance


def _cylinder(center: RGB, radius: float, half: float, axis: int = 2) -> Callable[[Tensor], Tensor]:
    across = [i for i in range(3) if i != axis]

    def distance(p: Tensor) -> Tensor:
        q = _offset(p, center)
        radial = q[..., across].norm(dim=-1) - radius
        axial = q[..., axis].abs() - half
        outside = torch.stack([radial, axial], dim=-1).clamp_min(0).norm(dim=-1)
        return outside + torch.maximum(radial, axial).clamp_max(0)

    return distance


def _cone(start: RGB, axis: int, length: float, radius: float, top_radius: float = 0.0) -> Callable[[Tensor], Tensor]:
    """A (truncated) cone from ``start``, where its radius is ``radius``, ``length`` along +axis to ``top_radius``."""
    across = [i for i in range(3) if i != axis]

    def distance(p: Tensor) -> Tensor:
        q = _offset(p, start)
        radial, height = q[..., across].norm(dim=-1), q[..., axis]
        # The slanted side as a 2D line segment from (radius, 0) to (top_radius, length).
        edge_x, edge_y = top_radius - radius, length
        along = ((radial - radius) * edge_x + height * edge_y) / (edge_x**2 + edge_y**2)
        along = along.clamp(0, 1)
        side = torch.hypot(radial - radius - along * edge_x, height - along * edge_y)
        at_height = radius + edge_x * (height / length).clamp(0, 1)
        cap_radius = torch.where(height > length / 2, top_radius, radius)
        cap_height = torch.where(height > length / 2, height - length, -height)
        cap = torch.hypot((radial - cap_radius).clamp_min(0), cap_height)
        inside = (radial < at_height) & (height > 0) & (height < length)
        return torch.minimum(side, cap) * torch.where(inside, -1.0, 1.0)

    return distance


def _torus(center: RGB, major: float, minor: float, axis: int = 2) -> Callable[[Tensor], Tensor]:
    across = [i for i in range(3) if i != axis]

    def distance(p: Tensor) -> Tensor:
        q = _offset(p, center)
        return torch.hypot(q[..., across].norm(dim=-1) - major, q[..., axis]) - minor

    return distance


def _capsule(start: RGB, end: RGB, radius: float) -> Callable[[Tensor], Tensor]:
    def distance(p: Tensor) -> Tensor:
        q = _offset(p, start)
        edge = q.new_tensor(end) - q.new_tensor(start)
        along = ((q * edge).sum(-1) / edge.square().sum()).clamp(0, 1)
        return (q - along[..., None] * edge).norm(dim=-1) - radius

    return distance


def _planes(*planes: tuple[RGB, float]) -> Callable[[Tensor], Tensor]:
    """The convex solid of all points with ``normal . p <= offset`` for every plane (a lower bound outside)."""

    def distance(p: Tensor) -> Tensor:
        normals = p.new_tensor([normal for normal, _ in planes])
        lengths = normals.norm(dim=-1)
        offsets = p.new_tensor([offset for _, offset in planes])
        return ((p @ normals.T - offsets) / lengths).amax(dim=-1)

    return distance


def _cut(solid: Callable[[Tensor], Tensor], hole: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda p: torch.maximum(solid(p), -hole(p))


# --- objects ---------------------------------------------------------------------------------------------------------


def _pyramid() -> ShapeObject:
    base, apex, half = -0.5, 0.7, 0.62
    rise = half / (apex - base)
    sides = [((1.0, 0.0, rise), apex * rise), ((-1.0, 0.0, rise), apex * rise)]
    sides += [((0.0, 1.0, rise), apex * rise), ((0.0, -1.0, rise), apex * rise)]
    return ShapeObject((Part(_planes(*sides, ((0.0, 0.0, -1.0), -base))),), has_front=False)


def _mushroom() -> ShapeObject:
    cap = _cut(_ellipsoid((0, 0, 0.02), (0.72, 0.72, 0.62)), _box((0, 0, -0.5), (1.0, 1.0, 0.52), 0.0))
    stem = _cone((0, 0, -0.72), 2, 0.8, 0.27, 0.2)
    return ShapeObject((Part(cap, round_center=(0, 0, -0.1)), Part(stem, CREAM)), has_front=False)


def _tree() -> ShapeObject:
    return ShapeObject(
        (
            Part(_cone((0, 0, -0.38), 2, 0.72, 0.58, 0.1), round_center=(0, 0, -0.1)),
            Part(_cone((0, 0, 0.12), 2, 0.7, 0.42), round_center=(0, 0, -0.1)),
            Part(_cylinder((0, 0, -0.55), 0.14, 0.25), BROWN),
        ),
        has_front=False,
    )


def _snowman() -> ShapeObject:
    return ShapeObject(
        (
            Part(_sphere((0, 0, -0.4), 0.44), round_center=(0, 0, -0.4)),
            Part(_sphere((0, 0, 0.14), 0.31), round_center=(0, 0, 0.14)),
            Part(_sphere((0, 0, 0.56), 0.23), round_center=(0, 0, 0.56)),
            Part(_cone((0.18, 0, 0.55), 0, 0.34, 0.08), ORANGE),
            Part(_sphere((0.185, 0.1, 0.65), 0.05), BLACK),
            Part(_sphere((0.185, -0.1, 0.65), 0.05), BLACK),
            Part(_sphere((0.29, 0, 0.22), 0.05), BLACK),
            Part(_sphere((0.3, 0, 0.06), 0.05), BLACK),
        ),
        has_front=True,
    )


def _house() -> ShapeObject:
    roof = _planes(
        ((0.0, 0.46, 0.58), 0.58 * 0.62),
        ((0.0, -0.46, 0.58), 0.58 * 0.62),
        ((0.0, 0.0, -1.0), -0.14),
        ((1.0, 0.0, 0.0), 0.5),
        ((-1.0, 0.0, 0.0), 0.5),
    )
    return ShapeObject(
        (
            Part(_box((0, 0, -0.25), (0.52, 0.52, 0.42))),
            Part(roof, BROWN),
            Part(_box((0.51, 0, -0.42), (0.04, 0.13, 0.25), 0.01), BLACK),
            Part(_box((0.51, 0.32, -0.16), (0.03, 0.1, 0.11), 0.01), GLASS),
            Part(_box((0.51, -0.32, -0.16), (0.03, 0.1, 0.11), 0.01), GLASS),
        ),
        has_front=True,
    )


def _mug() -> ShapeObject:
    wall = _cut(_cylinder((0, -0.12, 0), 0.44, 0.5), _cylinder((0, -0.12, 0.12), 0.36, 0.5))
    handle = _cut(_torus((0, 0.36, 0), 0.27, 0.075, axis=0), _cylinder((0, -0.12, 0), 0.42, 1.0))
    return ShapeObject(
        (Part(wall, round_center=(0, -0.12, 0)), Part(handle, round_center=(0, 0.36, 0))), has_front=True
    )


def _chair() -> ShapeObject:
    legs = [_box((x, y, -0.42), (0.06, 0.06, 0.34)) for x in (-0.34, 0.34) for y in (-0.34, 0.34)]
    return ShapeObject(
        (
            Part(_box((0, 0, -0.06), (0.42, 0.42, 0.07))),
            Part(_box((-0.36, 0, 0.36), (0.065, 0.42, 0.4))),
            *(Part(leg) for leg in legs),
        ),
        has_front=True,
    )


def _car() -> ShapeObject:
    wheels = [_cylinder((x, y, -0.28), 0.19, 0.08, axis=1) for x in (-0.46, 0.46) for y in (-0.36, 0.36)]
    return ShapeObject(
        (
            Part(_box((0, 0, -0.12), (0.82, 0.38, 0.19), 0.08)),
            Part(_box((-0.12, 0, 0.18), (0.42, 0.33, 0.19), 0.08)),
            Part(_box((-0.12, 0, 0.2), (0.3, 0.345, 0.1), 0.02), GLASS),
            Part(_box((-0.12, 0, 0.2), (0.435, 0.24, 0.1), 0.02), GLASS),
            *(Part(wheel, BLACK) for wheel in wheels),
            *(Part(_sphere((0.79, y, -0.08), 0.085), YELLOW) for y in (-0.24, 0.24)),
            *(Part(_sphere((-0.79, y, -0.08), 0.085), RED) for y in (-0.24, 0.24)),
        ),
        has_front=True,
    )


def _bird() -> ShapeObject:
    return ShapeObject(
        (
            Part(_ellipsoid((-0.08, 0, -0.1), (0.5, 0.36, 0.36)), round_center=(-0.08, 0, -0.1)),
            Part(_sphere((0.34, 0, 0.32), 0.26), round_center=(0.34, 0, 0.32)),
            Part(_ellipsoid((-0.62, 0, 0.06), (0.28, 0.16, 0.06)), round_center=(-0.62, 0, 0.06)),
            Part(_ellipsoid((-0.16, 0.36, -0.04), (0.34, 0.07, 0.2)), round_center=(-0.16, 0, 0)),
            Part(_ellipsoid((-0.16, -0.36, -0.04), (0.34, 0.07, 0.2)), round_center=(-0.16, 0, 0)),
            Part(_cone((0.54, 0, 0.3), 0, 0.28, 0.1), ORANGE),
            Part(_sphere((0.49, 0.16, 0.4), 0.055), BLACK),
            Part(_sphere((0.49, -0.16, 0.4), 0.055), BLACK),
            Part(_capsule((0.02, 0.14, -0.35), (0.02, 0.14, -0.72), 0.04), ORANGE),
            Part(_capsule((0.02, -0.14, -0.35), (0.02, -0.14, -0.72), 0.04), ORANGE),
        ),
        has_front=True,
    )


def _rocket() -> ShapeObject:
    fins = [_box((x, y, -0.5), (0.1, 0.1, 0.2), 0.02) for x in (-0.28, 0.28) for y in (-0.28, 0.28)]
    return ShapeObject(
        (
            Part(_cone((0, 0, -0.55), 2, 0.85, 0.32, 0.28), round_center=(0, 0, -0.1)),
            Part(_cone((0, 0, 0.3), 2, 0.58, 0.28), round_center=(0, 0, -0.1)),
            *(Part(fin, SLATE) for fin in fins),
            Part(_cone((0, 0, -0.72), 2, 0.17, 0.22, 0.16), BLACK),
            Part(_cylinder((0.27, 0, 0.02), 0.14, 0.05, axis=0), GLASS),
            Part(_cylinder((0.27, 0, -0.33), 0.08, 0.06, axis=0), BLACK),
        ),
        has_front=True,
    )


def _robot() -> ShapeObject:
    return ShapeObject(
        (
            Part(_box((0, 0, -0.1), (0.27, 0.36, 0.32), 0.04)),
            Part(_box((0, 0, 0.45), (0.23, 0.27, 0.19), 0.04)),
            *(Part(_box((0, y, -0.1), (0.1, 0.09, 0.28), 0.03), SLATE) for y in (-0.47, 0.47)),
            *(Part(_box((0.02, y, -0.6), (0.14, 0.12, 0.22), 0.03), SLATE) for y in (-0.18, 0.18)),
            *(Part(_sphere((0.22, y, 0.5), 0.07), YELLOW) for y in (-0.12, 0.12)),
            Part(_box((0.22, 0, 0.34), (0.03, 0.14, 0.03), 0.01), BLACK),
            Part(_box((0.26, 0, -0.06), (0.03, 0.17, 0.12), 0.01), BLACK),
            Part(_capsule((0, 0, 0.6), (0, 0, 0.78), 0.03), SLATE),
            Part(_sphere((0, 0, 0.82), 0.07), RED),
        ),
        has_front=True,
    )


def _simple(distance: Callable[[Tensor], Tensor], round_center: RGB | None = None) -> ShapeObject:
    return ShapeObject((Part(distance, round_center=round_center),), has_front=False)


OBJECTS: dict[str, ShapeObject] = {
    "sphere": _simple(_sphere((0, 0, 0), 0.72), (0, 0, 0)),
    "cube": _simple(_box((0, 0, 0), (0.52, 0.52, 0.52))),
    "cylinder": _simple(_cylinder((0, 0, 0), 0.45, 0.62), (0, 0, 0)),
    "cone": _simple(_cone((0, 0, -0.6), 2, 1.3, 0.62), (0, 0, -0.25)),
    "torus": _simple(_torus((0, 0, 0), 0.58, 0.24), (0, 0, 0)),
    "pyramid": _pyramid(),
    "mushroom": _mushroom(),
    "tree": _tree(),
    "snowman": _snowman(),
    "house": _house(),
    "mug": _mug(),
    "chair": _chair(),
    "car": _car(),
    "bird": _bird(),
    "rocket": _rocket(),
    "robot": _robot(),
}
