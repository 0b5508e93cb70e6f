"""The colours of a surface: what rays along its normals show, at its vertices or at the texels of its charts."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import scipy.ndimage
import torch
from numpy.typing import NDArray
from torch import Tensor

from nfsd3d.export.isosurface import Surface
from nfsd3d.export.mesh import FloatArray, Texture, linear_to_srgb, srgb_to_linear
from nfsd3d.export.raster import Fragments, rasterize
from nfsd3d.export.unwrap import Charts

SUPERSAMPLING = 2
"""Looks per texel and axis."""

COLOR_SAMPLES = 8
"""Along the normal at each look."""

SLANT = 2.0
"""How much longer the way of a view into the surface is than its depth, on the mean over all views that see it."""

FAINTEST = 0.01
"""Of what a ray shows: a sample of a smaller share is left out."""

POINTS_PER_BATCH = 2**15

LOOKS_PER_BAND = 2**19
"""At most, of a texture's looks that are in memory together: it is baked in bands of whole rows of texels."""


class Colored(Protocol):
    """What has densities and colours; neither function keeps a gradient."""

    def density(self, positions: Tensor) -> Tensor:
        """[N] densities at the world points ``positions`` [N,3]."""
        ...

    def albedo(self, positions: Tensor) -> Tensor:
        """[N,3] sRGB colours in [0,1], as seen from everywhere, at the world points ``positions`` [N,3]."""
        ...


@torch.no_grad()
def surface_colors(
    solid: Colored,
    points: FloatArray,
    normals: FloatArray,
    radius: float,
    reach: float,
    device: torch.device | str = "cpu",
    on_batch: Callable[[float], None] | None = None,
) -> FloatArray:
    """[N,3] the colour that views show at each of the surface's ``points`` [N,3], with outward ``normals`` [N,3].

    A ray into the surface is composited as in rendering, from ``reach`` world units before it to as much behind it, in
    the cube of half-width ``radius``; what it has not absorbed by then is shared out among what it has met. One ray
    against the normal stands for all views, so the field counts :data:`SLANT` times on it. ``on_batch`` is told which
    share is done.
    """
    depths = torch.linspace(-reach, reach, COLOR_SAMPLES, device=device)
    step = SLANT * (depths[1] - depths[0])
    colors: list[NDArray] = []
    for start in range(0, len(points), POINTS_PER_BATCH):
        stop = start + POINTS_PER_BATCH
        origin = torch.from_numpy(points[start:stop]).to(device)
        inward = -torch.from_numpy(normals[start:stop]).to(device)
        along = (origin[:, None] + depths[None, :, None] * inward[:, None]).clamp(-radius, radius)
        optical = solid.density(along.reshape(-1, 3)).float().reshape(-1, COLOR_SAMPLES) * step
        before = torch.nn.functional.pad(optical[:, :-1].cumsum(1), (1, 0))
        # expm1: where there is almost nothing, what little there is decides.
        weights = torch.exp(-before) * -torch.expm1(-optical) + torch.finfo(torch.float32).tiny
        weights *= weights > FAINTEST * weights.sum(1, keepdim=True)
        albedo = torch.zeros_like(along)
        albedo[weights > 0] = solid.albedo(along[weights > 0]).float()
        mean = (weights[..., None] * albedo).sum(1) / weights.sum(1, keepdim=True)
        colors.append(mean.clamp(0, 1).cpu().numpy())
        if on_batch is not None:
            on_batch(min(stop / len(points), 1.0))
    return np.concatenate(colors)


def bake(
    surface: Surface,
    normals: FloatArray,
    charts: Charts,
    size: int,
    color: Callable[[FloatArray, FloatArray], FloatArray],
    on_band: Callable[[float], None] | None = None,
) -> Texture:
    """The texture of ``size``^2 texels; ``color`` gives the sRGB colours [N,3] at surface points with normals.

    A texel is the mean, in linear light, of looks at the surface spread over it. Texels outside the charts take the
    colour of the nearest one inside, so that no filter brings in a foreign colour at a seam. Beside the texture itself
    memory holds one band of its looks at a time; ``on_band`` is told which share is done.
    """
    fine = size * SUPERSAMPLING
    corners = np.zeros((len(charts.faces), 3, 3))
    corners[..., :2] = charts.uv[charts.faces] * fine
    height = max(LOOKS_PER_BAND // (fine * SUPERSAMPLING), 1) * SUPERSAMPLING
    bands = [(start, min(height, fine - start)) for start in range(0, fine, height)]
    slivers = _slivers(corners, fine, bands)
    image, known = np.zeros((size, size, 3), np.float32), np.zeros((size, size), bool)
    for start, rows in bands:
        found = _with_slivers(rasterize(corners, rows, fine, start), corners, slivers, start)
        covered = found.covered
        if covered.any():
            faces, weights = surface.faces[found.face[covered]], found.weights[covered]
            points, directions = (_mixed(weights, values[faces]) for values in (surface.vertices, normals))
            directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-12)
            light = srgb_to_linear(color(points.astype(np.float32), directions.astype(np.float32)))
            band = slice(start // SUPERSAMPLING, (start + rows) // SUPERSAMPLING)
            image[band], known[band] = _texels(light, covered)
        if on_band is not None:
            on_band((start + rows) / fine)
    image = _padded(image, known)
    return Texture(charts.uv, charts.source, charts.faces, np.round(linear_to_srgb(image) * 255).astype(np.uint8))


def _mixed(weights: NDArray, values: NDArray) -> NDArray:
    """[N,C] the mean of the corners' ``values`` [N,3,C] with ``weights`` [N,3]."""
    return np.einsum("nk,nkc->nc", weights, values)


def _slivers(corners: NDArray, fine: int, bands: list[tuple[int, int]]) -> NDArray[np.int64]:
    """The triangles that cover no middle of a pixel, in any of the ``bands`` (first row, number of rows)."""
    missing = np.ones(len(corners), dtype=bool)
    for start, rows in bands:
        found = rasterize(corners, rows, fine, start)
        missing[found.face[found.covered]] = False
    return np.flatnonzero(missing)


def _with_slivers(found: Fragments, corners: NDArray, slivers: NDArray[np.int64], start: int) -> Fragments:
    """The fragments of the rows from ``start`` on, with each of the ``slivers`` at the pixel of its middle, if free."""
    rows, columns = found.face.shape
    column, row = corners[slivers, :, :2].mean(axis=1).astype(np.int64).clip(0, columns - 1).T
    here = (row >= start) & (row < start + rows)
    column, row, slivers = column[here], row[here] - start, slivers[here]
    free = found.face[row, column] < 0
    face, weights = found.face.copy(), found.weights.copy()
    face[row[free], column[free]] = slivers[free]
    weights[row[free], column[free]] = 1 / 3
    return Fragments(face, weights)


def _texels(light: NDArray, covered: NDArray[np.bool_]) -> tuple[FloatArray, NDArray[np.bool_]]:
    """[H,W,3] the mean of the looks ``light`` [N,3] at the places ``covered`` in each texel, and [H,W] where any is."""
    rows, columns = (count // SUPERSAMPLING for count in covered.shape)
    look = np.flatnonzero(covered)
    row, column = look // covered.shape[1] // SUPERSAMPLING, look % covered.shape[1] // SUPERSAMPLING
    index = row * columns + column
    count = np.bincount(index, minlength=rows * columns)
    sums = np.stack([np.bincount(index, channel, minlength=rows * columns) for channel in light.T], axis=-1)
    image = (sums / np.maximum(count, 1)[:, None]).astype(np.float32)
    return image.reshape(rows, columns, 3), (count > 0).reshape(rows, columns)


def _padded(image: FloatArray, known: NDArray[np.bool_]) -> FloatArray:
    """The image with every unknown pixel like the nearest known one."""
    nearest = scipy.ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    return image[tuple(nearest)]
