"""Triangles on a grid of pixels: which one is seen where; for the charts of textures and for pictures of a mesh."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nfsd3d.cameras import Cameras
from nfsd3d.export.mesh import FloatArray, SurfaceMesh, Texture, linear_to_srgb, srgb_to_linear
from nfsd3d.export.texture.rasterize_numba import fill
from nfsd3d.generators.nerf.launch_numba import launch

BANDS = 16
"""Into which a picture is cut; each is filled by one thread."""

NEAREST = 1e-3
"""World units before the camera; what is nearer is not drawn."""


@dataclass(frozen=True)
class Fragments:
    """What the middle of each pixel shows: ``face`` [H,W] int32, -1 for nothing; barycentric ``weights`` [H,W,3]."""

    face: NDArray[np.int32]
    weights: FloatArray

    @property
    def covered(self) -> NDArray[np.bool_]:
        """[H,W] where there is a triangle."""
        return self.face >= 0


def rasterize(triangles: NDArray, height: int, width: int) -> Fragments:
    """The nearest of ``triangles`` [F,3,3] at the middle of every pixel.

    Their columns are x to the right and y downwards, in pixels, and a depth that is linear across the picture.
    """
    nearest = torch.full((height, width), torch.inf, dtype=torch.float64)
    face = torch.full((height, width), -1, dtype=torch.int32)
    weights = torch.zeros(height, width, 3)
    corners = torch.from_numpy(np.ascontiguousarray(triangles, dtype=np.float64))
    launch(fill, corners, min(BANDS, height), nearest, face, weights)
    return Fragments(face.numpy(), weights.numpy())


def draw(mesh: SurfaceMesh, camera: Cameras) -> tuple[FloatArray, NDArray[np.bool_]]:
    """What ``camera`` (a batch of one) sees of the mesh without any light.

    Returns sRGB colours [H,W,3] (of the texture if there is one), 0 where the mesh is not, and where it is, [H,W].
    Triangles that reach behind the camera are left out.
    """
    height, width = camera.height, camera.width
    to_world = camera.rotations[0].numpy().astype(np.float64)
    local = (mesh.vertices - camera.positions[0].numpy().astype(np.float64)) @ to_world
    depth = np.maximum(-local[:, 2], NEAREST)
    scale = height / 2 / np.tan(float(camera.fovy[0]) / 2) / depth
    # Not the depth but its inverse is linear across the picture.
    screen = np.stack([width / 2 + local[:, 0] * scale, height / 2 - local[:, 1] * scale, -1 / depth], axis=-1)
    before = np.flatnonzero((depth[mesh.faces] > NEAREST).all(axis=1))
    found = rasterize(screen[mesh.faces[before]], height, width)
    covered = found.covered
    face = before[found.face[covered]]
    # Weights across the picture are not those across the surface, which has more of the nearer corners.
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
    """[N,3] linear light at ``uv`` [N,2], filtered bilinearly as graphics cards do."""
    last = texture.size - 1
    place = (uv * texture.size - 0.5).clip(0, last)
    low = np.minimum(place.astype(np.int64), max(last - 1, 0))
    high = np.minimum(low + 1, last)
    x, y = (place - low).T[..., None]
    light = srgb_to_linear(np.arange(256) / 255)[texture.image]

    def row(v: NDArray[np.int64]) -> NDArray:
        return light[v, low[:, 0]] * (1 - x) + light[v, high[:, 0]] * x

    return row(low[:, 1]) * (1 - y) + row(high[:, 1]) * y
