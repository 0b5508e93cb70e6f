"""The value that export passes around: a coloured triangle surface in world axes."""

from dataclasses import dataclass

import numpy as np
import trimesh
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class SurfaceMesh:
    """A triangle mesh in world units and axes (right-handed, z-up, front at +x), counter-clockwise seen from outside.

    ``vertices`` [V,3]; ``faces`` [F,3] int32; ``normals`` [V,3] unit, outward; ``colors`` [V,3] in [0,1],
    sRGB-encoded as the renders are.
    """

    vertices: FloatArray
    faces: NDArray[np.int32]
    normals: FloatArray
    colors: FloatArray

    def to_trimesh(self) -> trimesh.Trimesh:
        """The same surface as a ``trimesh.Trimesh``, z-up, with 8-bit sRGB vertex colours."""
        return trimesh.Trimesh(
            vertices=self.vertices,
            faces=self.faces,
            vertex_normals=self.normals,
            vertex_colors=np.round(self.colors * 255).astype(np.uint8),
            process=False,
        )
