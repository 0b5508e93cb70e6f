"""Reads an OBJ file, with its materials (MTL) and textures."""

import io
import re
from collections import Counter
from pathlib import Path

import numpy as np

from nfsd3d.export.formats.source.messages import NO_UV, check_triangle_count
from nfsd3d.export.formats.source.part import Part, three_columns
from nfsd3d.export.formats.source.siblings import SiblingFiles
from nfsd3d.export.formats.source.trimesh_loaders import fan_triangulated, geometries_with_faces, uv_from_top

_UNUSUAL = re.compile(r"^(?:[ \t]+\S|(?:v|vn|vt|f)(?:\t| [^\n]*[#\t]))|^f [^\n]*[ /]-", re.MULTILINE)
"""Lines of an OBJ that trimesh 5.2 does not understand: indented, with tabs, comments or relative indices."""


def read_obj(path: Path, content: bytes, notes: list[str]) -> list[Part]:
    """The parts of an OBJ file, in its order: one for each material.

    Raises:
        InputError: it has too many triangles, or a damaged texture.
        ValueError: it is damaged; trimesh raises other exceptions too.
    """
    from trimesh.exchange.obj import load_obj

    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    polygons = len(re.findall(r"^[ \t]*f[ \t]", text, re.MULTILINE))
    check_triangle_count(path, polygons)
    if not polygons:
        return []
    if _UNUSUAL.search(text):
        text = _plain(text)
    siblings = SiblingFiles(path.parent)
    # trimesh returns the materials in reverse order.
    geometries = geometries_with_faces(load_obj(io.StringIO(text), resolver=siblings))[::-1]
    parts = []
    for geometry in geometries:
        positions = three_columns(geometry["vertices"])
        visual, colors = geometry["visual"], geometry.get("vertex_colors")
        uv = image = base = None
        if visual is not None:
            uv, material = visual.uv, getattr(visual.material, "kwargs", {})
            base = material.get("kd")
            base = np.array(base) if isinstance(base, list) and len(base) == 3 else None
            if "texture" in material:
                image = siblings.image(" ".join(material["texture"])) if uv is not None else None
                if uv is None:
                    notes.append(NO_UV)
        if colors is not None and colors.max() > 1:
            colors = colors / 255
        faces = fan_triangulated(geometry["faces"])
        parts.append(Part(positions, faces, geometry.get("vertex_normals"), uv_from_top(uv), image, colors, base))
    siblings.report(path, notes)
    triangles = sum(len(part.faces) for part in parts)
    if triangles > polygons:
        notes.append(f"has polygons: they are cut into {triangles:,} triangles")
    return parts


def _plain(text: str) -> str:
    """An OBJ without indentation, tabs and comments, and with absolute indices."""
    lines, counts = [], Counter[str]()
    for line in text.split("\n"):
        words = line.split()
        kind = words[0] if words else ""
        if kind in ("v", "vt", "vn", "f") and "#" in line:
            words = line[: line.index("#")].split()
        if kind in ("v", "vt", "vn"):
            counts[kind] += 1
        elif kind == "f":
            ends = [counts["v"], counts["vt"], counts["vn"]]
            words[1:] = [
                "/".join(
                    str(end + int(index) + 1) if index.startswith("-") else index
                    for index, end in zip(word.split("/"), ends, strict=False)
                )
                for word in words[1:]
            ]
        lines.append(" ".join(words))
    return "\n".join(lines)
