"""The turntable of an object without its background: an animated GIF or WebP, or PNG files for other programs."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from PIL import Image as Pillow

from nfsd3d.generators.base import Rendering, RenderOptions
from nfsd3d.runs.files import write_bytes
from nfsd3d.visualize.image_grid import Image, write_png
from nfsd3d.visualize.images import FRAMES_PER_SECOND, Viewable, to_uint8

if TYPE_CHECKING:
    from nfsd3d.views.cameras import Cameras

Form = Literal["mp4", "gif", "webp", "png"]
"""Forms of a turntable; all but the video are written here."""
FRAME_MS = round(1000 / FRAMES_PER_SECOND)


def cut_outs(generator: Viewable, cameras: Cameras, on_progress: Callable[[], None] | None = None) -> Iterator[Image]:
    """An image [H,W,4] uint8 for each camera: colours, and the opacity as alpha (not multiplied)."""
    black = RenderOptions(background=torch.zeros(1, 3))
    for index in range(len(cameras)):
        yield cut_out(generator.render_in_chunks(cameras[index : index + 1], black))
        if on_progress is not None:
            on_progress()


def cut_out(over_black: Rendering) -> Image:
    """[H,W,4] uint8 of the first view of a rendering over black."""
    alpha = over_black.opacity[0]
    color = over_black.image[0] / alpha.clamp(min=1 / 255)
    return to_uint8(torch.cat([color, alpha]))


def write_animation(folder: Path, form: Form, frames: Iterator[Image]) -> list[Path]:
    """Writes ``turntable.gif`` or ``turntable.webp``, or ``turntable/NNN.png``; returns the paths.

    A GIF's pixels are opaque or clear; a WebP is lossless, because a lossy one lets half alpha drift.
    """
    if form == "png":
        (folder / "turntable").mkdir(parents=True, exist_ok=True)
        paths = []
        for index, frame in enumerate(frames):
            paths.append(folder / "turntable" / f"{index:03d}.png")
            write_png(paths[-1], frame)
        for path in (folder / "turntable").glob("*.png"):  # of an earlier one with more frames
            if path not in paths and path.stem.isdecimal():
                path.unlink()
        return paths
    first, *others = (Pillow.fromarray(_clear_or_opaque(frame) if form == "gif" else frame) for frame in frames)
    content = io.BytesIO()  # see `image_grid.write_png`
    # disposal: a frame is removed before the next one, which would leave a trail on clear ground.
    options = {"disposal": 2} if form == "gif" else {"lossless": True, "exact": True}
    first.save(content, form, save_all=True, append_images=others, duration=FRAME_MS, loop=0, **options)
    path = folder / f"turntable.{form}"
    write_bytes(path, content.getvalue())
    return [path]


def _clear_or_opaque(frame: Image) -> Image:
    opaque = frame[..., 3:] >= 128
    return np.where(opaque, frame | np.array([0, 0, 0, 255], np.uint8), np.uint8(0))
