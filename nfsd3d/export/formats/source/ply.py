"""Reads a PLY file, with vertex colours, normals, or a texture named in a comment."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfsd3d.export.formats.source.messages import check_triangle_count
from nfsd3d.export.formats.source.part import Part, three_columns
from nfsd3d.export.formats.source.siblings import SiblingFiles
from nfsd3d.export.formats.source.trimesh_loaders import fan_triangulated, geometries_with_faces, uv_from_top


def read_ply(path: Path, content: bytes, notes: list[str]) -> list[Part]:
    """The part of a PLY file.

    Raises:
        InputError: it has too many triangles, or a damaged texture.
        ValueError: it is damaged; trimesh raises other exceptions too.
    """
    from trimesh.exchange.ply import load_ply

    header = content[: content.find(b"end_header") + 1]
    if not header:
        raise ValueError("its header does not end")
    count = int(found[1]) if (found := re.search(rb"element\s+face\s+(\d+)", header)) else 0
    check_triangle_count(path, count)
    image = None
    siblings = SiblingFiles(path.parent)
    if named := re.search(rb"comment\s+TextureFile\s+(.+)", header, re.IGNORECASE):
        image = siblings.image(named[1].decode("utf-8", "replace"))
    siblings.report(path, notes)
    # Without a texture, UV positions are of no use, and trimesh would split vertices by them, but not their colours.
    loaded = load_ply(io.BytesIO(content), skip_materials=True, fix_texture=image is not None)
    for element in loaded["metadata"]["_ply_raw"].values():
        data = element.get("data")
        rows = 0 if data is None else len(next(iter(data.values())) if isinstance(data, dict) else data)
        if rows < element["length"]:
            raise ValueError("it ends early")
    parts = []
    for geometry in geometries_with_faces(loaded):
        positions, faces = three_columns(geometry["vertices"]), fan_triangulated(geometry["faces"])
        if len(faces) > count:
            notes.append(f"has polygons: they are cut into {len(faces):,} triangles")
        uv = getattr(geometry.get("visual"), "uv", None) if image is not None else None
        colors, normals = (_of_vertices(geometry.get(key), positions) for key in ("vertex_colors", "vertex_normals"))
        if colors is not None:
            colors = three_columns(colors[:, :3]) / (np.iinfo(colors.dtype).max if colors.dtype.kind in "ui" else 1)
        parts.append(Part(positions, faces, normals, uv_from_top(uv), image, colors))
    return parts


def _of_vertices(values: NDArray[Any] | None, positions: NDArray[Any]) -> NDArray[Any] | None:
    """``values`` if they are one for each vertex."""
    return values if values is not None and len(values) == len(positions) else None
