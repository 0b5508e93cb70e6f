"""Views of a generator as pictures: grids, contact sheets and the turntable video."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import imageio.v3 as imageio
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nfsd3d.cameras import Cameras
from nfsd3d.generators.base import Rendering
from nfsd3d.runs.files import replacing

Image = NDArray[np.uint8]
"""[H,W,3]."""

FRAMES_PER_SECOND = 24


class Viewable(Protocol):
    """What a generator must offer to be shown."""

    def render_in_chunks(self, cameras: Cameras, *, normals: bool = False) -> Rendering:
        """The view of each camera, without gradient; of any size."""
        ...


def render_views(
    generator: Viewable, cameras: Cameras, *, normals: bool = False, on_view: Callable[[], None] | None = None
) -> Iterator[Rendering]:
    """One rendering per camera (batch of 1), without gradient; ``on_view`` is called after each."""
    for index in range(len(cameras)):
        yield generator.render_in_chunks(cameras[index : index + 1], normals=normals)
        if on_view is not None:
            on_view()


def to_uint8(image: Tensor) -> Image:
    """[H,W,C] 0..255 of an image [C,H,W] in [0,1]."""
    return (image.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def rgb_image(rendering: Rendering) -> Image:
    """The image of the first view."""
    return to_uint8(rendering.image[0])


def opacity_image(rendering: Rendering) -> Image:
    """White where the first view is solid, black where it is empty."""
    return to_uint8(rendering.opacity[0].expand(3, -1, -1))


def normal_image(rendering: Rendering) -> Image:
    """World normals of the first view as colours (x, y, z of [-1,1] in red, green, blue), on white.

    Raises:
        ValueError: the rendering was made without normals.
    """
    if rendering.normal is None:
        raise ValueError("a picture of normals needs a rendering with normals")
    opacity = rendering.opacity[0]
    unit = torch.nn.functional.normalize(rendering.normal[0], dim=0)
    return to_uint8((unit + 1) / 2 * opacity + (1 - opacity))


def depth_image(rendering: Rendering, near: float, far: float) -> Image:
    """Depth of the first view: ``near`` white, ``far`` dark grey, empty black."""
    opacity = rendering.opacity[0]
    nearness = ((far - rendering.depth[0]) / (far - near)).clamp(0, 1)
    return to_uint8(((0.15 + 0.85 * nearness) * opacity).expand(3, -1, -1))


def grid(rows: list[list[Image]]) -> Image:
    """Pictures of one size, side by side in each row."""
    return np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)


def square(images: list[Image]) -> Image:
    """Pictures of one size in rows, about as many as columns; white where the last row has none."""
    columns = math.ceil(math.sqrt(len(images)))
    blank = [np.full_like(images[0], 255)] * (-len(images) % columns)
    padded = [*images, *blank]
    return grid([padded[first : first + columns] for first in range(0, len(padded), columns)])


def preview(generator: Viewable, cameras: Cameras) -> Image:
    """Three rows over ``cameras``: image, opacity, normals."""
    views = list(render_views(generator, cameras, normals=True))
    return grid([[picture(view) for view in views] for picture in (rgb_image, opacity_image, normal_image)])


def contact_sheet(generator: Viewable, cameras: Cameras, on_view: Callable[[], None] | None = None) -> Image:
    """Two rows over ``cameras``: image, normals."""
    views = list(render_views(generator, cameras, normals=True, on_view=on_view))
    return grid([[picture(view) for view in views] for picture in (rgb_image, normal_image)])


def turntable_frames(
    generator: Viewable, cameras: Cameras, radius: float, on_view: Callable[[], None] | None = None
) -> Iterator[Image]:
    """Image, depth and normals side by side, one frame per camera; depth is scaled to the sphere of ``radius``."""
    for index, view in enumerate(render_views(generator, cameras, normals=True, on_view=on_view)):
        distance = float(cameras.distance[index])
        depth = depth_image(view, max(distance - radius, 0.0), distance + radius)
        yield grid([[rgb_image(view), depth, normal_image(view)]])


def write_turntable(
    generator: Viewable,
    folder: Path,
    *,
    sheet: Cameras,
    video: Cameras,
    radius: float,
    on_view: Callable[[], None] | None = None,
) -> list[Path]:
    """Writes ``turntable.png``, a contact sheet of the cameras ``sheet``, and ``turntable.mp4`` of those of ``video``.

    ``radius`` is that of the world. Returns the paths.
    """
    paths = [folder / "turntable.png", folder / "turntable.mp4"]
    write_png(paths[0], contact_sheet(generator, sheet, on_view))
    write_video(paths[1], turntable_frames(generator, video, radius, on_view))
    return paths


def write_png(path: Path, image: Image) -> None:
    """Writes a PNG atomically."""
    with replacing(path) as temporary:
        imageio.imwrite(temporary, image, extension=".png")


def write_video(path: Path, frames: Iterator[Image]) -> None:
    """Writes an H.264 video atomically, frame by frame; frames have even sides."""
    with replacing(path) as temporary, imageio.imopen(temporary, "w", plugin="pyav") as video:
        video.init_video_stream("libx264", fps=FRAMES_PER_SECOND, pixel_format="yuv420p")
        for frame in frames:
            video.write_frame(frame)
