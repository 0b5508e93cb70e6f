"""Texture baking: surface colours composited along the normals, at vertices or at the texels of charts."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nfsd3d.export.isosurface import Surface
from nfsd3d.export.texture.rasterize import rasterize
from nfsd3d.export.texture.unwrap import Charts
from nfsd3d.generators.mesh.surface import (
    FloatArray,
    SurfaceMesh,
    Texture,
    linear_to_srgb,
    nearest_known,
    srgb_to_linear,
)

SUPERSAMPLING = 2
"""Colour samples per texel and axis, where a texel may hold several colours."""

COLOR_SAMPLES = 8
"""Field samples along the normal for each colour."""

SLANT = 2.0
"""Mean ratio, over all views of a surface point, of a ray's length below the surface to its depth."""

FAINTEST = 0.01
"""Field samples with a smaller fraction of the total weight are ignored."""

POINTS_PER_BATCH = 2**15

SAMPLES_PER_BAND = 2**19
"""Maximum colour samples in a band of the texture."""


class Colored(Protocol):
    """A field of densities and colours, evaluated without gradient."""

    def density(self, positions: Tensor) -> Tensor:
        """[N] densities at the world points ``positions`` [N,3]."""
        ...

    def albedo(self, positions: Tensor) -> Tensor:
        """[N,3] view-independent sRGB colours in [0,1] at the world points ``positions`` [N,3]."""
        ...


@torch.no_grad()
def surface_colors(
    solid: Colored,
    points: FloatArray,
    normals: FloatArray,
    radius: float,
    reach: float,
    device: torch.device | str = "cpu",
) -> FloatArray:
    """[N,3] the colour that views show at surface ``points`` [N,3] with outward ``normals`` [N,3].

    A ray against the normal is composited as in rendering, from ``reach`` world units before to ``reach`` behind the
    surface, inside the cube of half-width ``radius``; weights are normalised to sum to 1. One ray represents all views,
    so densities are multiplied by :data:`SLANT`.
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
        # expm1 keeps precision where the density is almost zero.
        weights = torch.exp(-before) * -torch.expm1(-optical) + torch.finfo(torch.float32).tiny
        weights *= weights > FAINTEST * weights.sum(1, keepdim=True)
        albedo = torch.zeros_like(along)
        albedo[weights > 0] = solid.albedo(along[weights > 0]).float()
        mean = (weights[..., None] * albedo).sum(1) / weights.sum(1, keepdim=True)
        colors.append(mean.clamp(0, 1).cpu().numpy())
    return np.concatenate(colors)


def bake(
    surface: Surface,
    normals: FloatArray,
    charts: Charts,
    size: int,
    color: Callable[[FloatArray, FloatArray], FloatArray],
    detail: float = 0.0,
    on_progress: Callable[[float], None] | None = None,
) -> Texture:
    """The texture of ``size``^2 texels; ``color`` gives the sRGB colours [N,3] at surface points with normals.

    A texel is the mean, in linear light, of colour samples spread over it, or a single sample if it is smaller than
    ``detail``, the distance in world units over which colours change. Texels outside the charts have the colour of the
    nearest one inside, so that texture filtering does not bleed at seams. The texture is baked in bands of rows;
    ``on_progress`` is called with the fraction that is done.
    """
    samples = 1 if texel_side(surface, charts, size) <= detail else SUPERSAMPLING

    def light_at(face: NDArray, weights: NDArray) -> NDArray:
        points, directions = (
            np.einsum("nk,nkc->nc", weights, values[surface.faces[face]]) for values in (surface.vertices, normals)
        )
        directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-12)
        return srgb_to_linear(color(points.astype(np.float32), directions.astype(np.float32)))

    image = bake_image(charts, size, samples, light_at, _encoded, on_progress)
    return Texture(charts.uv, charts.source, charts.faces, image)


def bake_vertex_colors(mesh: SurfaceMesh, charts: Charts, size: int) -> Texture:
    """The texture of ``size``^2 texels that shows the mesh's vertex colours, in between in linear light."""
    light = srgb_to_linear(mesh.colors)
    image = bake_image(
        charts, size, 1, lambda face, weights: np.einsum("nk,nkc->nc", weights, light[mesh.faces[face]]), _encoded
    )
    return Texture(charts.uv, charts.source, charts.faces, image)


def bake_image(
    charts: Charts,
    size: int,
    samples: int,
    values_at: Callable[[NDArray, NDArray], NDArray],
    encode: Callable[[NDArray], NDArray[np.uint8]],
    on_progress: Callable[[float], None] | None = None,
) -> NDArray[np.uint8]:
    """[size,size,3] the texels of the charts, and outside of them the nearest one's.

    ``values_at`` gives values [N,3] at barycentric weights [N,3] of triangles [N]. A texel is ``encode`` of the mean of
    its samples, of which it has ``samples``^2.
    """
    corners = np.zeros((len(charts.faces), 3, 3))
    corners[..., :2] = charts.uv[charts.faces] * (size * samples)
    image = np.zeros((size, size, 3), np.uint8)
    known, drawn = np.zeros((size, size), dtype=bool), np.zeros(len(corners), dtype=bool)

    rows = max(1, SAMPLES_PER_BAND // (size * samples**2))
    for top in range(0, size, rows):
        height = min(rows, size - top)
        found = rasterize(corners - [0, top * samples, 0], height * samples, size * samples)
        if found.covered.any():
            face = found.face[found.covered]
            drawn[face] = True
            mean, there = _texels(values_at(face, found.weights[found.covered]), found.covered, samples)
            image[top : top + height], known[top : top + height] = encode(mean), there
        if on_progress is not None:
            on_progress((top + height) / size)
    # Triangles that cover no sample's centre get a texel that is still empty.
    slivers = np.flatnonzero(~drawn)
    column, row = (corners[slivers, :, :2].mean(axis=1) / samples).astype(np.int64).clip(0, size - 1).T
    free = ~known[row, column]
    if free.any():
        slivers, place = slivers[free], (row[free], column[free])
        image[place], known[place] = encode(values_at(slivers, np.full((len(slivers), 3), 1 / 3))), True
    return nearest_known(image, known)


def texel_side(surface: Surface, charts: Charts, size: int) -> float:
    """The mean side of a texel on the surface, in world units, of a texture of ``size``^2 texels."""
    return float(np.sqrt(_area(surface.vertices, surface.faces) / max(_area(charts.uv, charts.faces), 1e-12)) / size)


def _area(places: NDArray, faces: NDArray) -> float:
    """The area of triangles [F,3] between ``places`` [V,2] or [V,3]."""
    sides = np.diff(places[faces].astype(np.float64), axis=1)
    lengths = np.einsum("fac,fbc->fab", sides, sides)
    return float(np.sqrt(np.linalg.det(lengths).clip(min=0)).sum() / 2)


def _texels(values: NDArray, covered: NDArray[np.bool_], samples: int) -> tuple[NDArray, NDArray[np.bool_]]:
    """[H,W,3] mean of the samples ``values`` [N,3], at the ``covered`` pixels, per texel; [H,W] whether it has any.

    A texel has ``samples`` pixels per axis.
    """
    height, width = (side // samples for side in covered.shape)
    row, column = (place // samples for place in np.nonzero(covered))
    index = row * width + column
    count = np.bincount(index, minlength=height * width)
    sums = np.stack([np.bincount(index, channel, minlength=height * width) for channel in values.T], axis=-1)
    mean = sums / np.maximum(count, 1)[:, None]
    return mean.reshape(height, width, 3), (count > 0).reshape(height, width)


def _encoded(light: NDArray) -> NDArray[np.uint8]:
    """8-bit sRGB values of linear light."""
    return np.round(linear_to_srgb(light) * 255).astype(np.uint8)
