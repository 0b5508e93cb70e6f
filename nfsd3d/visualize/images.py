"""Renderings as uint8 images: previews, the contact sheet and the turntable video of a scene."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from nfsd3d.generators.base import Rendering, RenderOptions
from nfsd3d.runs.files import write_bytes
from nfsd3d.visualize.image_grid import Image, grid, write_png

if TYPE_CHECKING:
    from nfsd3d.views.cameras import Cameras

FRAMES_PER_SECOND = 24

NORMALS_ABOVE = 1e-2
"""`RenderOptions.normals_above` of normals that are shown: half a level of 255 from those with 1e-3, in three quarters
of the time."""


class Viewable(Protocol):
    """What previews and turntables need of a generator."""

    def render_in_chunks(self, cameras: Cameras, options: RenderOptions) -> Rendering:
        """The view of each camera, of any size, without gradient."""
        ...


def render_views(
    generator: Viewable, cameras: Cameras, *, normals: bool = False, on_progress: Callable[[], None] | None = None
) -> Iterator[Rendering]:
    """One rendering per camera (batch of 1), without gradient; ``on_progress`` is called after each."""
    options = RenderOptions(normals=normals, normals_above=NORMALS_ABOVE)
    for index in range(len(cameras)):
        yield generator.render_in_chunks(cameras[index : index + 1], options)
        if on_progress is not None:
            on_progress()


def to_uint8(image: Tensor) -> Image:
    """The uint8 image [H,W,C] of an image [C,H,W] in [0,1]."""
    return (image.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def rgb_image(rendering: Rendering) -> Image:
    """The RGB image of the first view."""
    return to_uint8(rendering.image[0])


def opacity_image(rendering: Rendering) -> Image:
    """Opacity of the first view: opaque white, empty black."""
    return to_uint8(rendering.opacity[0].expand(3, -1, -1))


def normal_image(rendering: Rendering) -> Image:
    """World normals of the first view as RGB (x, y, z of [-1,1] as red, green, blue), on white.

    Raises:
        ValueError: the rendering has no normals.
    """
    if rendering.normal is None:
        raise ValueError("an image of normals needs a rendering with normals")
    opacity = rendering.opacity[0]
    unit = torch.nn.functional.normalize(rendering.normal[0], dim=0)
    return to_uint8((unit + 1) / 2 * opacity + (1 - opacity))


def depth_image(rendering: Rendering, near: float, far: float) -> Image:
    """Depth of the first view: ``near`` white, ``far`` dark grey, empty black."""
    opacity = rendering.opacity[0]
    nearness = ((far - rendering.depth[0]) / (far - near)).clamp(0, 1)
    return to_uint8(((0.15 + 0.85 * nearness) * opacity).expand(3, -1, -1))


def preview(generator: Viewable, cameras: Cameras, on_progress: Callable[[], None] | None = None) -> Image:
    """A grid with one column per camera; rows: RGB, opacity, normals. ``on_progress`` is called after each camera."""
    views = list(render_views(generator, cameras, normals=True, on_progress=on_progress))
    return grid([[to_image(view) for view in views] for to_image in (rgb_image, opacity_image, normal_image)])


def contact_sheet(generator: Viewable, cameras: Cameras, on_progress: Callable[[], None] | None = None) -> Image:
    """A grid with one column per camera; rows: RGB, normals."""
    views = list(render_views(generator, cameras, normals=True, on_progress=on_progress))
    return grid([[to_image(view) for view in views] for to_image in (rgb_image, normal_image)])


def turntable_frames(
    generator: Viewable, cameras: Cameras, radius: float, on_progress: Callable[[], None] | None = None
) -> Iterator[Image]:
    """One frame per camera: RGB, depth and normals side by side; depth is scaled to the sphere of ``radius``."""
    for index, view in enumerate(render_views(generator, cameras, normals=True, on_progress=on_progress)):
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
    on_progress: Callable[[], None] | None = None,
) -> list[Path]:
    """Writes ``turntable.png``, a contact sheet of the cameras ``sheet``, and ``turntable.mp4`` of those of ``video``.

    ``radius`` is the world's half-width. Returns the paths.
    """
    paths = [folder / "turntable.png", folder / "turntable.mp4"]
    write_png(paths[0], contact_sheet(generator, sheet, on_progress))
    write_video(paths[1], turntable_frames(generator, video, radius, on_progress))
    return paths


def write_video(path: Path, frames: Iterator[Image]) -> None:
    """Writes an H.264 video atomically, frame by frame; frames must have even sides, and there must be one.

    The file names its colours. Where one does not, browsers guess by the height: from 720 pixels on Chromium 150 shows
    colours wrongly, by up to 39 levels of 255. With these names it is 2 at most, with BT.709's matrix 12.
    """
    import av

    content = io.BytesIO()  # a video that cannot be written to its end leaves no file
    with av.open(content, "w", format="mp4") as video:
        stream = video.add_stream("libx264", rate=FRAMES_PER_SECOND)
        stream.pix_fmt = "yuv420p"
        codec = stream.codec_context
        # By H.273: BT.601's matrix, which is FFmpeg's own, limited range, BT.709's primaries, sRGB's transfer function.
        codec.colorspace, codec.color_range, codec.color_primaries, codec.color_trc = 6, 1, 1, 13
        for frame in frames:
            if not codec.is_open:
                stream.height, stream.width = frame.shape[:2]
            video.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        if not codec.is_open:
            raise ValueError("a video needs a frame")
        video.mux(stream.encode())
    write_bytes(path, content.getvalue())
