"""Reads a user's mesh (GLB, OBJ with MTL and textures, PLY, STL) and moves it into the world's cube.

Positions, triangles and UVs are those of the file. Vertices at exactly the same position become one vertex of the mesh,
and keep their UV positions as texture vertices (`nfsd3d.generators.mesh.surface.Texture`).

PLY and STL are parsed by trimesh's loaders, GLB and OBJ by this package.
"""

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nfsd3d.errors import InputError
from nfsd3d.export.formats.source.atlas import packed_atlas
from nfsd3d.export.formats.source.glb import read_glb
from nfsd3d.export.formats.source.gltf import to_world
from nfsd3d.export.formats.source.messages import check_triangle_count, source_error
from nfsd3d.export.formats.source.obj import read_obj
from nfsd3d.export.formats.source.part import Part, joined_faces
from nfsd3d.export.formats.source.placement import TO_WORLD, scale_and_shift, upward_axis
from nfsd3d.export.formats.source.ply import read_ply
from nfsd3d.export.formats.source.repair import is_inside_out, sound_triangles, without_unused
from nfsd3d.export.formats.source.stl import read_stl
from nfsd3d.export.formats.source.vertex_colors import merged_vertex_colors
from nfsd3d.export.formats.source.vertices import distinct_rows, sums_by_number, used_vertices
from nfsd3d.export.isosurface import outward_normals
from nfsd3d.generators.mesh.surface import FloatArray, SurfaceMesh, Texture
from nfsd3d.runs.files import first_line


@dataclass(frozen=True)
class SourceMesh:
    """A mesh from a file, moved into the world's cube: what was read, how it was moved, and what was repaired.

    ``mesh`` is in world units and axes; ``scale``, ``rotation`` [3,3] and ``shift`` [3] are how it came there:
    ``world = scale * rotation @ file + shift``. ``file_vertices`` [V,3]: the positions in the file (of a GLB: in its
    scene), in the order of ``mesh.vertices``. ``notes``: what was repaired or assumed, each a sentence about the file
    without its subject, such as "has 2 duplicate triangles: removed".
    """

    mesh: SurfaceMesh
    scale: float
    rotation: NDArray[np.float64]
    shift: FloatArray
    file_vertices: FloatArray
    notes: tuple[str, ...]


def read_mesh(path: Path, radius: float, up: Literal["auto", "y", "z"] = "auto") -> SourceMesh:
    """The mesh of a GLB, OBJ, PLY or STL file, in the cube of half-width ``radius`` in world units.

    A mesh that lies in the cube and whose longest side is at least :data:`.placement.SMALLEST` * ``radius`` stays where
    it is; another is centred and scaled to a longest side of 2 * :data:`.placement.FILL` * ``radius``. A GLB that
    ``nfsd3d`` wrote at another size or origin is moved back.

    ``up``: the upward axis in the file; auto: what a file of ``nfsd3d`` says, else y in GLB and OBJ (their +z becomes
    the front, +x), and z in PLY and STL, as ``nfsd3d`` writes them.

    Vertices at exactly the same position become one, in the order of their first; UV positions stay as they are. Parts
    are joined; several textures become one atlas. Vertex colours of PLY and OBJ and the colours of an MTL are sRGB,
    those of GLB linear. A base colour multiplies the texture of a GLB, and not that of an OBJ, whose exporters write
    any ``Kd`` beside ``map_Kd``. A texture that repeats becomes vertex colours. Alpha is ignored.

    Raises:
        InputError: the file is missing, of another format, damaged, compressed, has no triangles or too many, or
            positions that are not finite.
    """
    content, notes = _content(path), list[str]()
    name = path.suffix[1:].lower()
    parts = [part for part in _parsed(path, name, content, notes) if len(part.faces)]
    check_triangle_count(path, sum(len(part.faces) for part in parts), least=1)
    parts = without_unused(parts, notes)
    if unknown := sum(int((~np.isfinite(part.colors)).any(1).sum()) for part in parts if part.colors is not None):
        notes.append(f"has {unknown:,} vertex colours that are no numbers: they are black")
    positions = np.concatenate([part.positions for part in parts])
    with np.errstate(over="ignore"):
        finite = np.isfinite(positions.astype(np.float32)).all(axis=1)
    if wrong := int((~finite).sum()):
        some = f"{wrong:,} of its {len(positions):,} vertices have positions that are not finite"
        raise source_error(path, f"{some}; delete them, for example in Blender, and export it again")

    vertex, first = distinct_rows(positions)
    rotation = TO_WORLD[upward_axis(name, content, notes) if up == "auto" else up]
    axes = rotation.argmax(axis=1)
    turned = positions[first][:, axes]
    scale, shift = scale_and_shift(turned, radius, to_world(content) if name == "glb" else None, notes)
    world = (scale * turned + shift).astype(np.float32).astype(np.float64)

    corners = joined_faces(parts)
    corners = corners[sound_triangles(path, world, vertex[corners], notes)]
    if is_inside_out(world, vertex[corners], notes):
        corners = corners[:, ::-1]
    kept, faces = used_vertices(vertex[corners], len(world))
    normals = sums_by_number(np.concatenate([part.unit_normals() for part in parts]), vertex)[:, axes]
    texture = None
    if (atlas := packed_atlas(parts, notes)) is not None:
        texture_kept, texture_faces = used_vertices(corners, len(positions))
        renumbered = np.zeros(len(world), np.int32)
        renumbered[kept] = np.arange(len(kept))
        source = renumbered[vertex[texture_kept]]
        texture = Texture(atlas.uv[texture_kept], source, texture_faces.astype(np.int32), atlas.image)
    colors = merged_vertex_colors(parts, vertex, first, notes, textured=texture is not None)
    mesh = SurfaceMesh(
        vertices=world[kept].astype(np.float32),
        faces=faces.astype(np.int32),
        normals=outward_normals(world[kept], faces, normals[kept]),
        colors=colors[kept].astype(np.float32),
        texture=texture,
    )
    return SourceMesh(
        mesh=mesh,
        scale=scale,
        rotation=rotation,
        shift=shift.astype(np.float32),
        file_vertices=positions[first][kept].astype(np.float32),
        notes=tuple(dict.fromkeys(notes)),
    )


def _content(path: Path) -> bytes:
    """The content of a mesh file.

    Raises:
        InputError: there is no such file, it is of no known format, or empty.
    """
    readable = ", ".join(_READERS)
    if path.is_dir():
        raise source_error(path, f"is a directory; give a mesh file in it ({readable})")
    if not path.exists():
        raise source_error(path, f"no such file; give a mesh file ({readable})")
    if path.suffix.lower() == ".gltf":
        remedy = "export it as one .glb (Blender: glTF Binary)"
        raise source_error(path, f"is a .gltf, whose data are in other files; {remedy}")
    if path.suffix[1:].lower() not in _READERS:
        found = f"({path.suffix or 'no suffix'}); convert it to one of {readable}"
        raise source_error(path, f"is of no known format {found}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise source_error(path, f"cannot be read ({error.strerror}); give a readable file") from error
    if not content:
        raise source_error(path, "is empty; export it again")
    return content


def _parsed(path: Path, name: str, content: bytes, notes: list[str]) -> list[Part]:
    """The parts of a mesh file.

    Raises:
        InputError: it cannot be read.
    """
    logger = logging.getLogger("trimesh")
    level = logger.level
    try:
        logger.setLevel(logging.CRITICAL)  # what it cannot read is reported here
        with warnings.catch_warnings():  # numpy's of unreadable numbers, Pillow's of large images
            warnings.simplefilter("ignore")
            return _READERS[name](path, content, notes)
    except InputError:
        raise
    except Exception as error:  # the parsers raise nearly every exception on damaged files
        reason = first_line(error)
        remedy = "with triangles only, or as GLB" if name == "ply" else "for example from Blender as GLB"
        message = f"cannot be read as {name.upper()} ({reason}); it may be damaged: export it again, {remedy}"
        raise source_error(path, message) from error
    finally:
        logger.setLevel(level)


_READERS: dict[str, Callable[[Path, bytes, list[str]], list[Part]]] = {
    "glb": read_glb,
    "obj": read_obj,
    "ply": read_ply,
    "stl": read_stl,
}
