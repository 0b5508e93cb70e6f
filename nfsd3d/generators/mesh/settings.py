"""Settings of the textured mesh."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat


@dataclass(frozen=True, kw_only=True)
class MeshSettings:
    """A textured mesh that is optimised itself; it starts from ``source_run`` or ``source_mesh``."""

    type: Literal["mesh"] = "mesh"
    """Kind of generator."""
    radius: PositiveFloat
    """Half-width of the cube that holds the object, in world units; a mesh of another size is moved into it."""
    geometry_steps: NonNegativeInt
    """Steps at the start in which the vertices move; afterwards only the texture learns. 0: the geometry is fixed."""
    max_faces: Annotated[int, Field(ge=100, le=2_000_000)]
    """Triangles of the mesh that is taken from a field; the mesh of a file keeps its own."""
    texture_size: Annotated[int, Field(ge=16, le=8192)]
    """Texels per side, where the source has no texture of its own; a texture of a file keeps its size."""
    color_cells: Annotated[int, Field(ge=0, le=2048)] = 0
    """Cells per axis of the finest grid in space in which colours change, without seams; 0: each texel by itself."""
    laplacian: NonNegativeFloat
    """Weight of the squared distance of vertices to the mean of their neighbours; more is smoother, and shrinks."""
    normal_consistency: NonNegativeFloat
    """Weight of 1 - cosine between neighbouring triangles' normals; more is flatter, with sharper edges."""
    source_up: Literal["auto", "y", "z"] = "auto"
    """Upward axis of ``source_mesh``; auto: y in GLB and OBJ, z in PLY and STL."""
    background: Literal["learned", "color"]
    """Background behind the object. learned: a small network of the direction. color: plain white."""
