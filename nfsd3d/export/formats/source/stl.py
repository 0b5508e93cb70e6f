"""Reads an STL file, binary or ASCII."""

import io
from pathlib import Path

from nfsd3d.export.formats.source.messages import check_triangle_count
from nfsd3d.export.formats.source.part import Part, three_columns
from nfsd3d.export.formats.source.trimesh_loaders import geometries_with_faces


def read_stl(path: Path, content: bytes, _: list[str]) -> list[Part]:
    """The part of an STL file.

    Raises:
        InputError: it has too many triangles.
        ValueError: it is damaged; trimesh raises other exceptions too.
    """
    from trimesh.exchange.stl import load_stl

    count = int.from_bytes(content[80:84], "little")
    end = 84 + 50 * count
    if binary := 84 <= len(content) >= end:
        content = content[:end]  # some programs append to it, which trimesh refuses
    elif b"facet" not in content[:4096].lower():
        raise ValueError(f"its header names {count:,} triangles, and it has {max(len(content) - 84, 0) // 50:,}")
    check_triangle_count(path, count if binary else content.count(b"endfacet"))
    geometries = geometries_with_faces(load_stl(io.BytesIO(content)))
    return [Part(three_columns(geometry["vertices"]), geometry["faces"]) for geometry in geometries]
