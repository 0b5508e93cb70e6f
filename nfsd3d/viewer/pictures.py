"""What the viewer shows of a scene: colours, depth, normals or opacity, with the depth that hides other objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from nfsd3d.generators.base import Rendering, RenderOptions, SceneGenerator
from nfsd3d.generators.nerf.nerf import NeRF
from nfsd3d.viewer.pose import Pose, cameras_of
from nfsd3d.visualize.image_grid import Image
from nfsd3d.visualize.images import NORMALS_ABOVE, depth_image, normal_image, opacity_image, rgb_image

CHANNELS = ("colour", "depth", "normals", "opacity")

RAYS_PER_CHUNK = 2**13
"""Rays after which a rendering may be given up, because the camera has moved."""

FAR = 100.0
"""Depth in world units where a view shows nothing."""


T = TypeVar("T")


class Exclusive(Protocol):
    """How a scene is drawn that another thread changes."""

    def __call__(self, work: Callable[[], T], pixels: int) -> T:
        """The result of ``work``, which draws so many ``pixels``, at a moment when nobody changes the scene."""
        ...


def at_once(work: Callable[[], T], pixels: int) -> T:
    """The result of ``work``: nobody changes the scene."""
    return work()


@dataclass(frozen=True)
class Scene:
    """A scene of the viewer.

    ``about`` are facts in Markdown, ``mesh`` the GLB file of its mesh, if and when there is one, ``start`` the first
    pose. ``exclusive`` draws it, and ``tallest`` (height, width/height) limits the height of a view in pixels.
    """

    generator: SceneGenerator
    about: str
    mesh: Path
    start: Pose
    exclusive: Exclusive = at_once
    tallest: Callable[[int, float], int] = lambda height, aspect: height

    @property
    def radius(self) -> float:
        """Half-width of the world, in world units."""
        return self.generator.radius

    @property
    def cell(self) -> float:
        """Side of a cell of the occupancy grid, in world units; of a mesh, which has none, 0."""
        if not isinstance(self.generator, NeRF):
            return 0.0
        return 2 * self.generator.radius / self.generator.occupancy.resolution

    def occupied(self) -> NDArray[np.float32]:
        """[N,3] the centres of the occupancy grid's occupied cells, in world units; none of a mesh."""
        if not isinstance(self.generator, NeRF):
            return np.zeros((0, 3), np.float32)
        grid = self.generator.occupancy
        cells = self.exclusive(lambda: grid.occupied.nonzero().float().cpu(), 0)
        return ((cells + 0.5) * self.cell - self.radius).numpy()


@dataclass(frozen=True)
class Picture:
    """A view: ``image`` [H,W,3] uint8, and ``depth`` [H,W] along the camera's axis, in world units."""

    image: Image
    depth: NDArray[np.float32]


def picture(
    scene: Scene, pose: Pose, height: int, width: int, channel: str, on_chunk: Callable[[], None] = lambda: None
) -> Picture:
    """The view of ``scene`` from ``pose``; what ``on_chunk`` raises, which is called now and then, ends it.

    All of it is computed where the scene is: torch's threads of two callers would wait for each other in busy loops.
    """
    return scene.exclusive(lambda: _drawn(scene, pose, height, width, channel, on_chunk), height * width)


def _drawn(scene: Scene, pose: Pose, height: int, width: int, channel: str, on_chunk: Callable[[], None]) -> Picture:
    cameras = cameras_of(pose, height, width)
    options = RenderOptions(normals=channel == "normals", normals_above=NORMALS_ABOVE, rays_per_chunk=RAYS_PER_CHUNK)
    rendering = scene.generator.render_in_chunks(cameras, options, on_chunk)
    forward = -cameras.rotations[0, :, 2]
    along = (cameras.rays().directions @ forward).reshape(height, width)
    seen = rendering.opacity[0, 0].cpu() > 0.5
    depth = torch.where(seen, rendering.depth[0, 0].cpu() * along, FAR)
    return Picture(_image(rendering, channel, float(cameras.distance), scene.radius), depth.numpy())


def _image(rendering: Rendering, channel: str, distance: float, radius: float) -> Image:
    if channel == "depth":
        return depth_image(rendering, max(distance - radius, 0.0), distance + radius)
    return {"colour": rgb_image, "normals": normal_image, "opacity": opacity_image}[channel](rendering)
