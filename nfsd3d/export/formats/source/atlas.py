"""Packs the textures of all parts of a source mesh into one texture atlas."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfsd3d.export.formats.source.messages import counted
from nfsd3d.export.formats.source.part import Part
from nfsd3d.generators.mesh.surface import FloatArray, linear_to_srgb, srgb_to_linear
from nfsd3d.settings.export import TEXTURE_SIZES

PADDING = 8
"""Texels around each texture of an atlas, so that mipmaps do not mix neighbours."""


@dataclass(frozen=True)
class Atlas:
    """A square texture and the UV positions [N,2] of all parts' vertices on it."""

    image: NDArray[np.uint8]
    uv: FloatArray


def packed_atlas(parts: Sequence[Part], notes: list[str]) -> Atlas | None:
    """The textures of all parts as one atlas; None without any.

    A single texture that all parts share is the atlas itself. Parts without a texture, or with one that repeats, get a
    cell in their mean colour.
    """
    textured = [part for part in parts if part.fits]
    if repeating := sum(part.textured and not part.fits for part in parts):
        which = f"{counted(repeating, 'part')} with a texture that repeats" if textured else "a texture that repeats"
        instead = "the mean colour" if textured else "vertex colours"
        notes.append(f"has {which} (UV positions outside [0, 1]): replaced by {instead}")
    images = {id(part.image): part.image for part in textured if part.image is not None}
    if not images:
        return None
    if len(images) == 1 and len(textured) == len(parts):
        (image,) = images.values()
        uv = np.concatenate([part.uv for part in textured if part.uv is not None])
        return Atlas(_squared(image, notes), uv.clip(0, 1))

    plain = {index: _mean_color(part) for index, part in enumerate(parts) if not part.fits}
    colors = list(dict.fromkeys(plain.values()))
    columns = math.ceil(math.sqrt(len(images) + bool(colors)))
    blocks = math.ceil(math.sqrt(len(colors)))  # plain colours share a cell, on a grid of their own
    largest = max(max(image.shape[:2]) for image in images.values())
    side = max(min(largest, TEXTURE_SIZES[1] // columns - 2 * PADDING), 4 * blocks)
    pitch = side + 2 * PADDING
    canvas = np.zeros((columns * pitch, columns * pitch, 3), np.uint8)

    def put(index: int, image: NDArray[np.uint8]) -> NDArray[Any]:
        """Puts an image of ``side`` texels into a cell; returns the cell's UV origin."""
        row, column = divmod(index, columns)
        cell = np.pad(image, [(PADDING, PADDING), (PADDING, PADDING), (0, 0)], mode="edge")
        canvas[row * pitch : (row + 1) * pitch, column * pitch : (column + 1) * pitch] = cell
        return np.array([column * pitch + PADDING, row * pitch + PADDING])

    origins = {key: put(index, _resized(image, side)) for index, (key, image) in enumerate(images.items())}
    if colors:
        block = np.arange(side) * blocks // side
        palette = np.zeros((blocks * blocks, 3), np.uint8)
        palette[: len(colors)] = colors
        origin = put(len(images), palette.reshape(blocks, blocks, 3)[block][:, block])
    places = []
    for index, part in enumerate(parts):
        if part.fits and part.uv is not None:
            places.append(origins[id(part.image)] + part.uv.clip(0, 1).astype(np.float64) * side)
        else:
            row, column = divmod(colors.index(plain[index]), blocks)
            place = origin + (np.array([column, row]) + 0.5) / blocks * side
            places.append(np.tile(place, (len(part.positions), 1)))
    packed = f"{counted(len(images), 'texture')}" + (f" and {counted(len(colors), 'plain colour')}" if colors else "")
    notes.append(f"has {packed}: packed into one texture of {len(canvas)} x {len(canvas)} texels")
    return Atlas(canvas, (np.concatenate(places) / len(canvas)).astype(np.float32))


def _squared(image: NDArray[np.uint8], notes: list[str]) -> NDArray[np.uint8]:
    """[S,S,3] the image [H,W,3], stretched to a square."""
    height, width = image.shape[:2]
    side = max(height, width)
    if height != width:
        notes.append(f"has a texture of {width} x {height} texels: stretched to {side} x {side}")
    return _resized(image, side)


def _resized(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """[side,side,3] the image [H,W,3] at another resolution."""
    from PIL import Image

    return image if image.shape[:2] == (side, side) else np.array(Image.fromarray(image).resize((side, side)))


def _mean_color(part: Part) -> tuple[int, ...]:
    """The mean colour of a part, in linear light, as sRGB in 8 bits."""
    mean = linear_to_srgb(srgb_to_linear(part.vertex_colors()).mean(axis=0))
    return tuple(int(value) for value in np.round(mean * 255))
