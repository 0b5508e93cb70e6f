"""The true object where a mesh is: its place, and unlit views of both."""

import math
from dataclasses import dataclass, fields, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from nfsd3d.config.schema import Config
from nfsd3d.evaluate.geometry.iou import fit
from nfsd3d.evaluate.geometry.voxels import distances_to, grid_points, mesh_solid, object_named
from nfsd3d.export.texture.rasterize import draw
from nfsd3d.generators.mesh.surface import SurfaceMesh
from nfsd3d.generators.settings import ImageSettings, LatentSettings, PluginGeneratorSettings
from nfsd3d.shapes.world.grammar import Composition
from nfsd3d.shapes.world.objects import BOUND, OBJECTS
from nfsd3d.shapes.world.render import render_views
from nfsd3d.train.build import viewing_cameras
from nfsd3d.views.cameras import Cameras, Rays

SUPERSAMPLE = 4
"""Samples per pixel and axis, of the mesh and of the true object; a pixel is their mean."""

BACKGROUND = 0.5
"""Gray background of all views."""

RAYS_PER_BATCH = 2**18
"""Rays of true views that are traced together; it bounds the memory."""

HEADING_VIEWS, HEADING_SIZE = 4, 48
"""Views, and their height and width in pixels, by which headings of a pattern are compared."""

HEADINGS_DEG = (tuple(range(0, 360, 10)), (0, -4, -2, 2, 4))
"""Headings of the pattern of a round object: the best of the first ones, turned by the best of the others."""


@dataclass(frozen=True)
class TruePlace:
    """Placement of a true object: turned by ``rotation`` (radians about z), scaled, then shifted (world units)."""

    scale: float = 1.0
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rotation: float = 0.0


@dataclass(frozen=True)
class Views:
    """Unlit views over the gray background: ``image`` [B,3,H,W] and ``coverage`` [B,1,H,W], in [0,1]."""

    image: Tensor
    coverage: Tensor


def fit_place(mesh: SurfaceMesh, truth: Composition, config: Config) -> tuple[TruePlace, float]:
    """The place of the true object at which its solid agrees best with that of ``mesh``, and their IoU there.

    Scale, shift and rotation are those of :func:`nfsd3d.evaluate.geometry.iou.fit`. Patterns are fixed to their
    object, without a random phase, but the solid of an object with rotational symmetry leaves the heading of its
    checks or dots open. It is then the one with the highest PSNR of views, of a fixed set: the four quarter turns of
    an object with four-fold symmetry, :data:`HEADINGS_DEG` of a round one.

    Raises:
        InputError: the mesh is not closed.
    """
    generator = config.generator
    assert not isinstance(generator, LatentSettings | ImageSettings | PluginGeneratorSettings)  # which have no mesh
    found = fit(mesh_solid(mesh.to_trimesh(), generator.radius), truth.object)
    place = TruePlace(found.scale, found.shift, found.rotation)
    rounds = _headings(truth)
    if rounds and not found.empty:
        cameras = viewing_cameras(config, HEADING_VIEWS, HEADING_SIZE)
        drawn = mesh_views(mesh, cameras, supersample=2).image

        def agreement(candidate: TruePlace) -> float:
            return psnr(true_views(truth, candidate, cameras, supersample=1).image, drawn)

        for turns in rounds:
            turned = [replace(place, rotation=place.rotation + math.radians(turn)) for turn in turns]
            place = max(turned, key=agreement)
    return place, found.iou


def _headings(truth: Composition) -> tuple[tuple[int, ...], ...]:
    """Turns in degrees that leave the object's solid as it is and move its pattern, to be tried one after the other."""
    if OBJECTS[truth.object].has_front or truth.pattern not in ("checkered", "dotted"):
        return ()
    return HEADINGS_DEG if _is_round(truth.object) else ((0, 90, 180, 270),)


@cache
def _is_round(name: str) -> bool:
    """Whether a turn of an eighth about z leaves the object as it is; one without a front has four-fold symmetry."""
    shape, cells = object_named(name), 24
    points = grid_points(BOUND, cells)
    distances = distances_to(shape, points)
    near = distances < 2 * BOUND / cells  # the distances of some objects are lower bounds, which need not be round
    turned = distances_to(shape, points[near] @ _turn(math.pi / 4).numpy())
    return float(abs(turned - distances[near]).max()) < 1e-3


def _turn(angle: float) -> Tensor:
    """[3,3], by which points [N,3] are multiplied to turn them by minus ``angle`` radians about z."""
    cosine, sine = math.cos(angle), math.sin(angle)
    return torch.tensor([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


@dataclass(frozen=True)
class _CamerasOfAnObject(Cameras):
    """Cameras in the world whose rays are in the coordinates of an object at ``place``."""

    place: TruePlace

    def rays(self) -> Rays:
        """See `Cameras.rays`; origins are in the object's units."""
        rays, place = super().rays(), self.place
        turn = _turn(place.rotation).to(rays.origins)
        origins = (rays.origins - rays.origins.new_tensor(place.shift)) @ turn / place.scale
        return Rays(origins, rays.directions @ turn)


def true_views(truth: Composition, place: TruePlace, cameras: Cameras, supersample: int = SUPERSAMPLE) -> Views:
    """Unlit views of the true object at ``place``: its exact colours and pattern."""
    views = []
    count = max(1, RAYS_PER_BATCH // (cameras.height * cameras.width * supersample**2))
    for start in range(0, len(cameras), count):
        batch = cameras[start : start + count]
        moved = _CamerasOfAnObject(**{each.name: getattr(batch, each.name) for each in fields(Cameras)}, place=place)
        gray = torch.full((len(batch), 3, batch.height, batch.width), BACKGROUND)
        views.append(render_views([truth] * len(batch), moved, gray, ambient=1.0, supersample=supersample))
    return Views(torch.cat([view.image for view in views]), torch.cat([view.mask for view in views]))


def mesh_views(mesh: SurfaceMesh, cameras: Cameras, supersample: int = SUPERSAMPLE) -> Views:
    """Unlit views of ``mesh`` (world coordinates), averaged like the true ones: in encoded colours."""
    images, coverages = [], []
    for index in range(len(cameras)):
        camera = cameras[index]
        image, covered = draw(mesh, camera.resized(camera.height * supersample, camera.width * supersample))
        image[~covered] = BACKGROUND
        images.append(F.avg_pool2d(torch.from_numpy(image).permute(2, 0, 1), supersample))
        coverages.append(F.avg_pool2d(torch.from_numpy(covered).float()[None], supersample))
    return Views(torch.stack(images).clamp(0, 1), torch.stack(coverages))


def psnr(images: Tensor, others: Tensor, where: Tensor | None = None) -> float:
    """The mean over views of the PSNR in dB of ``images`` [B,3,H,W] to ``others``, at the pixels ``where`` [B,1,H,W].

    Views without such pixels are left out; NaN if that leaves none.
    """
    weight = torch.ones_like(images[:, :1]) if where is None else where.to(images.dtype)
    error = ((images - others).square() * weight).mean(1).double().flatten(1).sum(1) / weight.double().flatten(1).sum(1)
    return float((-10 * error.log10()).nanmean())


def silhouette_iou(coverage: Tensor, other: Tensor) -> float:
    """The mean over views of the intersection over union of two silhouettes: coverage [B,1,H,W] > 0.5."""
    one, two = ((each > 0.5).flatten(1) for each in (coverage, other))
    return float(((one & two).sum(1) / (one | two).sum(1).clamp_min(1)).mean())
