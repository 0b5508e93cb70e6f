"""A batched sphere tracer for the world of shapes: true images, depth, masks, and the patterns on the surfaces."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from nfsd3d.shapes.world.grammar import COLORS, PATTERNS, Composition
from nfsd3d.shapes.world.objects import BOUND, OBJECTS, ShapeObject

if TYPE_CHECKING:
    from nfsd3d.views.cameras import Cameras

STRIPE_WIDTH = 0.2
CHECK_WIDTH = 0.26
DOT_SPACING = 0.36
DOT_RADIUS = 0.115
DOT_SHELL = 0.62  # the radius at which the dots of a round part have their nominal size
HIT_DISTANCE = 2e-3
MAX_STEPS = 80


@dataclass(frozen=True)
class TrueViews:
    """True renders: ``image`` [B,3,H,W] in [0,1], ``mask`` [B,1,H,W] the object's coverage of each pixel,
    ``depth`` [B,1,H,W] along the ray in world units (0 where nothing is hit).
    """

    image: Tensor
    mask: Tensor
    depth: Tensor


@torch.no_grad()
def render_views(
    compositions: list[Composition],
    cameras: Cameras,
    backgrounds: Tensor,
    ambient: float = 0.45,
    supersample: int = 2,
) -> TrueViews:
    """True views of ``compositions`` (one a camera, all of the same object) over ``backgrounds`` [B,3,H,W].

    Lambertian shading with ``ambient`` + (1 - ``ambient``) times the cosine to each camera's point light; each pixel
    is the mean of ``supersample`` squared rays. Raises ValueError for several objects.
    """
    names = {composition.object for composition in compositions}
    if len(names) != 1 or len(compositions) != len(cameras):
        raise ValueError(f"render_views takes one object and one composition a camera, got {sorted(names)}")
    shape = OBJECTS[names.pop()]
    device = backgrounds.device
    height, width = cameras.height * supersample, cameras.width * supersample
    fine = cameras.resized(height, width)
    rays = fine.rays()
    hit, distance = _trace(shape, rays.origins, rays.directions)

    points = rays.origins[hit] + rays.directions[hit] * distance[:, None]
    view = hit // (height * width)
    parts = shape.distances(points).argmin(dim=-1)
    normals = _normals(shape, points)
    first = torch.tensor([COLORS[c.color] for c in compositions], device=device)
    second = torch.tensor([COLORS[c.second or c.color] for c in compositions], device=device)
    pattern = torch.tensor([PATTERNS.index(c.pattern) for c in compositions], device=device)
    footprint = 2 * torch.tan(cameras.fovy / 2)[view] * distance / height
    albedo = _albedo(shape, points, normals, parts, first[view], second[view], pattern[view], footprint)
    to_light = F.normalize(cameras.light[view] - points, dim=-1)
    lambert = (normals * to_light).sum(-1).clamp_min(0)
    color = albedo * (ambient + (1 - ambient) * lambert)[:, None]

    count = len(cameras) * height * width
    flat_color, flat_mask, flat_depth = (torch.zeros(count, n, device=device) for n in (3, 1, 1))
    flat_color[hit], flat_mask[hit], flat_depth[hit] = color, 1.0, distance[:, None]

    def pooled(flat: Tensor) -> Tensor:
        image = flat.reshape(len(cameras), height, width, -1).permute(0, 3, 1, 2)
        return F.avg_pool2d(image, supersample)

    mask = pooled(flat_mask)
    image = pooled(flat_color) + (1 - mask) * backgrounds
    depth = pooled(flat_depth) / mask.clamp_min(1e-6)
    return TrueViews(image.clamp(0, 1), mask, depth)


def _trace(shape: ShapeObject, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Sphere tracing: the indices of the rays that hit, and their distances."""
    # Rays are marched only inside the bounding ball.
    middle = -(origins * directions).sum(-1)
    closest = origins.square().sum(-1) - middle.square()
    half = (BOUND**2 - closest).clamp_min(0).sqrt()
    active = torch.nonzero((half > 0) & (middle + half > 0)).squeeze(-1)
    t, far = (middle - half).clamp_min(0)[active], (middle + half)[active]
    o, d = origins[active], directions[active]
    found: list[Tensor] = []
    depths: list[Tensor] = []
    for step in range(MAX_STEPS):
        distance = shape.distance(o + d * t[:, None])
        t = t + distance
        if step % 4 == 3:
            done = distance < HIT_DISTANCE
            found.append(active[done])
            depths.append(t[done])
            keep = ~done & (t < far)
            active, t, far, o, d = active[keep], t[keep], far[keep], o[keep], d[keep]
            if active.numel() == 0:
                break
    return torch.cat(found), torch.cat(depths)


def _normals(shape: ShapeObject, points: Tensor, eps: float = 2e-3) -> Tensor:
    """[N,3] unit normals, by the tetrahedron rule of four distances."""
    corners = points.new_tensor([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]])
    total = torch.zeros_like(points)
    for corner in corners:
        total = total + corner * shape.distance(points + corner * eps)[:, None]
    return F.normalize(total, dim=-1)


def _albedo(
    shape: ShapeObject,
    points: Tensor,
    normals: Tensor,
    parts: Tensor,
    first: Tensor,
    second: Tensor,
    pattern: Tensor,
    footprint: Tensor,
) -> Tensor:
    """[N,3] surface colours; pattern edges are as soft as ``footprint`` [N], the size of a ray's pixel there."""
    albedo = torch.empty_like(points)
    for index, part in enumerate(shape.parts):
        chosen = torch.nonzero(parts == index).squeeze(-1)
        if chosen.numel() == 0:
            continue
        if part.color is not None:
            albedo[chosen] = points.new_tensor(part.color)
            continue
        p, n, width = points[chosen], normals[chosen], footprint[chosen].clamp_min(1e-4)
        mix = torch.zeros_like(p[:, 0])
        kind = pattern[chosen]
        mix = torch.where(kind == PATTERNS.index("striped"), _stripes(p, width), mix)
        mix = torch.where(kind == PATTERNS.index("checkered"), _checks(p, width), mix)
        dotted = kind == PATTERNS.index("dotted")
        if dotted.any():
            dots = _round_dots(p, part.round_center, width) if part.round_center else _flat_dots(p, n, width)
            mix = torch.where(dotted, dots, mix)
        albedo[chosen] = first[chosen] + mix[:, None] * (second[chosen] - first[chosen])
    return albedo


def _square_wave(x: Tensor, cell: float, width: Tensor) -> Tensor:
    """A wave of period 2 ``cell`` between -1 and 1 whose edges are ``width`` wide."""
    triangle = ((x / cell) % 2 - 1).abs() - 0.5  # in cells, zero at the edges
    return (triangle * 2 * cell / width).clamp(-1, 1)


def _stripes(p: Tensor, width: Tensor) -> Tensor:
    return 0.5 - 0.5 * _square_wave(p[:, 2], STRIPE_WIDTH, width)


def _checks(p: Tensor, width: Tensor) -> Tensor:
    # A small shift, so that flat faces of centred objects do not lie on cell borders.
    waves = [_square_wave(p[:, axis] + 0.061, CHECK_WIDTH, width) for axis in range(3)]
    return 0.5 - 0.5 * waves[0] * waves[1] * waves[2]


def _flat_dots(p: Tensor, n: Tensor, width: Tensor) -> Tensor:
    """Dots on the faces of boxes: a staggered lattice in the plane that the normal is nearest to."""
    axis = n.abs().argmax(dim=-1)
    u = torch.where(axis == 0, p[:, 1], p[:, 0])
    v = torch.where(axis == 2, p[:, 1], p[:, 2])
    row = torch.floor(v / DOT_SPACING + 0.5)
    u = u + (row % 2) * DOT_SPACING / 2
    du = u - DOT_SPACING * torch.floor(u / DOT_SPACING + 0.5)
    dv = v - DOT_SPACING * row
    return ((DOT_RADIUS - torch.hypot(du, dv)) / width + 0.5).clamp(0, 1)


def _fibonacci(count: int) -> Tensor:
    """[count,3] nearly even directions on the sphere."""
    index = torch.arange(count) + 0.5
    z = 1 - 2 * index / count
    phi = index * math.pi * (3 - math.sqrt(5))
    ring = (1 - z.square()).sqrt()
    return torch.stack([ring * phi.cos(), ring * phi.sin(), z], dim=-1)


_DOT_DIRECTIONS = _fibonacci(44)


def _round_dots(p: Tensor, center: tuple[float, float, float], width: Tensor) -> Tensor:
    """Dots on round parts: caps around nearly even directions from the part's centre."""
    offset = p - p.new_tensor(center)
    radius = offset.norm(dim=-1)
    cosine = (F.normalize(offset, dim=-1) @ _DOT_DIRECTIONS.to(p).T).amax(dim=-1).clamp(-1, 1)
    angle = torch.arccos(cosine)
    return ((DOT_RADIUS / DOT_SHELL - angle) * radius / width + 0.5).clamp(0, 1)
