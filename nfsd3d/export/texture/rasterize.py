"""A software rasteriser with a z-buffer, for texture charts and for unlit images of a mesh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from nfsd3d.generators.mesh.rasterize.coverage import cover, screen_weights
from nfsd3d.generators.mesh.surface import FloatArray, SurfaceMesh, Texture, linear_to_srgb, srgb_to_linear

if TYPE_CHECKING:
    from nfsd3d.views.cameras import Cameras

NEAREST = 1e-3
"""Near plane, in world units from the camera."""


@dataclass(frozen=True)
class Fragments:
    """The triangle at the centre of each pixel: ``face`` [H,W] int32, -1 for none; barycentric ``weights`` [H,W,3]."""

    face: NDArray[np.int32]
    weights: FloatArray

    @property
    def covered(self) -> NDArray[np.bool_]:
        """[H,W] bool: whether there is a triangle."""
        return self.face >= 0


def rasterize(triangles: NDArray, height: int, width: int) -> Fragments:
    """The nearest of ``triangles`` [F,3,3] at the centre of every pixel.

    Their columns are x to the right and y downwards, in pixels, and a depth that is linear across the image.
    """
    corners = torch.from_numpy(np.array(triangles, dtype=np.float64))
    if len(corners):
        corners[..., 2] = 1 + corners[..., 2].max() - corners[..., 2]  # positive, and larger where it is nearer
    faces = torch.arange(3 * len(corners)).reshape(-1, 3)
    face = cover(corners.reshape(1, -1, 3), faces, height, width, "numba")[0]
    row, column = (face >= 0).nonzero(as_tuple=True)
    weights = torch.zeros(height, width, 3)
    centre = torch.stack([column, row], dim=-1).double() + 0.5
    weights[row, column] = screen_weights(corners[face[row, column], :, :2], centre).float()
    return Fragments(face.int().numpy(), weights.numpy())


def draw(mesh: SurfaceMesh, camera: Cameras) -> tuple[FloatArray, NDArray[np.bool_]]:
    """An unlit image of the mesh, seen by ``camera`` (a batch of one).

    Returns sRGB colours [H,W,3] (of the texture if there is one), 0 outside the mesh; and [H,W] bool, its silhouette.
    Triangles that reach behind the camera are not drawn.
    """
    height, width = camera.height, camera.width
    to_world = camera.rotations[0].numpy().astype(np.float64)
    local = (mesh.vertices - camera.positions[0].numpy().astype(np.float64)) @ to_world
    depth = np.maximum(-local[:, 2], NEAREST)
    scale = height / 2 / np.tan(float(camera.fovy[0]) / 2) / depth
    # The inverse depth is linear across the image.
    screen = np.stack([width / 2 + local[:, 0] * scale, height / 2 - local[:, 1] * scale, -1 / depth], axis=-1)
    before = np.flatnonzero((depth[mesh.faces] > NEAREST).all(axis=1))
    found = rasterize(screen[mesh.faces[before]], height, width)
    covered = found.covered
    face = before[found.face[covered]]
    # Perspective correction: screen-space weights to barycentric weights on the surface.
    weights = found.weights[covered] / depth[mesh.faces[face]]
    image = np.zeros((height, width, 3), np.float32)
    image[covered] = colors_at(mesh, face, weights / weights.sum(axis=1, keepdims=True))
    return image, covered


def colors_at(mesh: SurfaceMesh, face: NDArray[np.int64], weights: NDArray) -> FloatArray:
    """[N,3] the sRGB colours at barycentric ``weights`` [N,3] of the triangles ``face`` [N]."""
    if mesh.texture is None:
        light = np.einsum("nk,nkc->nc", weights, srgb_to_linear(mesh.colors)[mesh.faces[face]])
    else:
        uv = np.einsum("nk,nkc->nc", weights, mesh.texture.uv[mesh.texture.faces[face]])
        light = _texel_light(mesh.texture, uv)
    return linear_to_srgb(light).astype(np.float32)


def _texel_light(texture: Texture, uv: NDArray) -> NDArray:
    """[N,3] linear light at ``uv`` [N,2], filtered bilinearly, as by graphics hardware."""
    last = texture.size - 1
    place = (uv * texture.size - 0.5).clip(0, last)
    low = np.minimum(place.astype(np.int64), max(last - 1, 0))
    high = np.minimum(low + 1, last)
    x, y = (place - low).T[..., None]
    light = srgb_to_linear(np.arange(256) / 255)[texture.image]

    def row(v: NDArray[np.int64]) -> NDArray:
        return light[v, low[:, 0]] * (1 - x) + light[v, high[:, 0]] * x

    return row(low[:, 1]) * (1 - y) + row(high[:, 1]) * y
