"""The mesh type of export: a triangle mesh in world axes with vertex colours, and possibly a texture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import trimesh

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class NormalMap:
    """Directions of a finer surface, as a texture: ``image`` [S,S,3] uint8, with the UV map of the colours.

    Red, green and blue are the direction's components along tangent, bitangent and normal, of [-1,1], as in glTF 2.0
    (green up in the image). ``tangents`` [T,4] of the texture vertices: a unit vector to the right in the image, in
    world axes, and the sign of the bitangent, ``sign * cross(normal, tangent)``, which points up in the image.
    """

    image: NDArray[np.uint8]
    tangents: FloatArray


@dataclass(frozen=True)
class Texture:
    """A texture: ``image`` [S,S,3] uint8, sRGB-encoded, row 0 at the top, and its UV map.

    ``uv`` [T,2] in [0,1]: the positions of texture vertices, x to the right and y downwards (as in glTF). ``faces``
    [F,3] int32: the texture vertices of the mesh's triangles, in the same order. ``source`` [T] int32: the mesh vertex
    of each texture vertex (several texture vertices share one along the seams of charts). ``normal_map``, or None.
    """

    uv: FloatArray
    source: NDArray[np.int32]
    faces: NDArray[np.int32]
    image: NDArray[np.uint8]
    normal_map: NormalMap | None = None

    @property
    def size(self) -> int:
        """Texels per side."""
        return self.image.shape[0]


@dataclass(frozen=True)
class SurfaceMesh:
    """A triangle mesh in world units and axes (right-handed, z-up, front at +x), counter-clockwise seen from outside.

    ``vertices`` [V,3]; ``faces`` [F,3] int32; ``normals`` [V,3] unit, outward; ``colors`` [V,3] in [0,1],
    sRGB-encoded as the renders are; ``texture``: colours at a higher resolution, or None.
    """

    vertices: FloatArray
    faces: NDArray[np.int32]
    normals: FloatArray
    colors: FloatArray
    texture: Texture | None = None

    def to_trimesh(self) -> trimesh.Trimesh:
        """The same mesh as a ``trimesh.Trimesh``, z-up, with 8-bit sRGB vertex colours."""
        import trimesh  # takes a third of a second, and GLB files do without

        return trimesh.Trimesh(
            vertices=self.vertices,
            faces=self.faces,
            vertex_normals=self.normals,
            vertex_colors=np.round(self.colors * 255).astype(np.uint8),
            process=False,
        )


def reduced(texture: Texture, size: int) -> Texture:
    """The texture reduced to at most ``size`` texels per side: each is the mean of a block, in linear light.

    A smaller one has no normal map.
    """
    block = -(-texture.size // size)
    if block == 1:
        return texture
    cut = texture.size // block * block
    light = srgb_to_linear(np.arange(256) / 255)[texture.image[:cut, :cut]]
    mean = light.reshape(cut // block, block, cut // block, block, 3).mean(axis=(1, 3))
    # UV coordinates refer to the cropped texture, without an incomplete last block.
    uv = (texture.uv * (texture.size / cut)).clip(0, 1).astype(np.float32)
    return replace(texture, uv=uv, image=np.round(linear_to_srgb(mean) * 255).astype(np.uint8), normal_map=None)


def nearest_known(image: NDArray, known: NDArray[np.bool_]) -> NDArray:
    """[S,S,C] the image with every pixel that is not ``known`` [S,S] replaced by the nearest one that is, if any."""
    import scipy.ndimage  # .1 s, which files without a new texture do without

    if not known.any():
        return image
    nearest = scipy.ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    return image[tuple(nearest)]


def srgb_to_linear(colors: NDArray) -> NDArray:
    """Linear light of sRGB-encoded values in [0,1] (IEC 61966-2-1)."""
    return np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(light: NDArray) -> NDArray:
    """sRGB-encoded values of linear light in [0,1]; the inverse of :func:`srgb_to_linear`."""
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * np.maximum(light, 0.0031308) ** (1 / 2.4) - 0.055)
