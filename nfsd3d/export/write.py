"""Mesh files. glTF and OBJ are y-up by convention, PLY and STL keep the world's z-up.

World axes (front +x, left +y, up +z) become glTF's (front +Z, left +X, up +Y): a cyclic permutation, so the
surface is turned, not mirrored. OBJ gets the same axes, which is what modelling programs expect of it.
"""

import io
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import trimesh
from numpy.typing import NDArray

from nfsd3d.errors import InputError
from nfsd3d.export.mesh import SurfaceMesh
from nfsd3d.files import write_bytes

Extras = Mapping[str, str | int | float]

_FLOAT, _USHORT, _UINT = 5126, 5123, 5125  # glTF component types
_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963  # glTF buffer view targets


def write_mesh(mesh: SurfaceMesh, path: Path, extras: Extras) -> None:
    """Writes ``mesh`` in the format of ``path``'s suffix, atomically; ``extras`` is kept where the format can.

    Raises:
        InputError: the suffix is not a known format.
    """
    write_bytes(path, FORMATS[known_format(path.suffix.lstrip("."))](mesh, extras))


def write_meshes(mesh: SurfaceMesh, folder: Path, formats: Sequence[str], extras: Extras) -> list[Path]:
    """Writes ``model.<format>`` for every format into ``folder``; returns the paths.

    Raises:
        InputError: one of the formats is not known; nothing is written then.
    """
    paths = [folder / f"model.{known_format(name)}" for name in formats]
    for path in paths:
        write_mesh(mesh, path, extras)
    return paths


def known_format(name: str) -> str:
    """``name`` in lower case.

    Raises:
        InputError: it is not a known format.
    """
    if name.lower() not in FORMATS:
        raise InputError(f"mesh format {name!r} is not known: choose from {', '.join(FORMATS)}")
    return name.lower()


def y_up(vectors: NDArray) -> NDArray:
    """[N,3] world vectors (x front, y left, z up) in glTF's axes (X left, Y up, Z front)."""
    return vectors[:, [1, 2, 0]]


def srgb_to_linear(colors: NDArray) -> NDArray:
    """Linear light of sRGB-encoded values in [0,1] (IEC 61966-2-1)."""
    return np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)


def glb_bytes(mesh: SurfaceMesh, extras: Extras) -> bytes:
    """A binary glTF 2.0 file: one mesh, y-up, with normals and vertex colours; ``extras`` in ``asset.extras``.

    Vertex colours are linear by specification. They are stored in 16 bits, because 8 linear bits leave only a
    handful of steps to the darkest fifth of the sRGB range.
    """
    positions = np.ascontiguousarray(y_up(mesh.vertices), dtype="<f4")
    normals = np.ascontiguousarray(y_up(mesh.normals), dtype="<f4")
    colors = np.full((len(positions), 4), 65535, dtype="<u2")
    colors[:, :3] = np.round(srgb_to_linear(mesh.colors.astype(np.float64)) * 65535)
    indices = mesh.faces.astype("<u4").reshape(-1)

    parts = [positions.tobytes(), normals.tobytes(), colors.tobytes(), indices.tobytes()]
    views, offset = [], 0
    for part, target in zip(parts, [_ARRAY_BUFFER] * 3 + [_ELEMENT_ARRAY_BUFFER], strict=True):
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": len(part), "target": target})
        offset += len(part)  # every part's size is a multiple of 4, so each one starts aligned
    count = len(positions)
    document = {
        "asset": {"version": "2.0", "generator": "nfsd3d", "extras": {**extras, "axes": "+Y up, +Z front, +X left"}},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "model"}],
        "meshes": [
            {
                "name": "model",
                "primitives": [{"attributes": {"POSITION": 0, "NORMAL": 1, "COLOR_0": 2}, "indices": 3, "material": 0}],
            }
        ],
        "materials": [
            {"name": "vertex colours", "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0}}
        ],
        "accessors": [
            {
                "bufferView": 0,
                "componentType": _FLOAT,
                "count": count,
                "type": "VEC3",
                "min": positions.min(0).tolist(),
                "max": positions.max(0).tolist(),
            },
            {"bufferView": 1, "componentType": _FLOAT, "count": count, "type": "VEC3"},
            {"bufferView": 2, "componentType": _USHORT, "normalized": True, "count": count, "type": "VEC4"},
            {"bufferView": 3, "componentType": _UINT, "count": len(indices), "type": "SCALAR"},
        ],
        "bufferViews": views,
        "buffers": [{"byteLength": offset}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    body = b"".join(parts)
    header = struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + len(body))
    return header + struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(body), b"BIN\0") + body


def obj_bytes(mesh: SurfaceMesh, extras: Extras) -> bytes:
    """Wavefront OBJ, y-up: positions with sRGB colours (the usual "v x y z r g b"), normals, faces."""
    text = io.StringIO()
    for key, value in {"generator": "nfsd3d", **extras}.items():
        text.write(f"# {key}: {' '.join(str(value).split())}\n")
    np.savetxt(text, np.hstack([y_up(mesh.vertices), mesh.colors]), fmt="v %.6g %.6g %.6g %.4f %.4f %.4f")
    np.savetxt(text, y_up(mesh.normals), fmt="vn %.4f %.4f %.4f")
    corners = np.repeat(mesh.faces + 1, 2, axis=1)  # OBJ counts from 1; vertex and normal share their index
    np.savetxt(text, corners, fmt="f %d//%d %d//%d %d//%d")
    return text.getvalue().encode()


def ply_bytes(mesh: SurfaceMesh, extras: Extras) -> bytes:
    """Binary PLY, z-up, with normals and 8-bit sRGB vertex colours."""
    del extras  # kept by glTF and OBJ only
    return trimesh.exchange.ply.export_ply(mesh.to_trimesh(), vertex_normal=True)


def stl_bytes(mesh: SurfaceMesh, extras: Extras) -> bytes:
    """Binary STL, z-up: the shape without colours."""
    del extras
    return trimesh.exchange.stl.export_stl(mesh.to_trimesh())


FORMATS: dict[str, Callable[[SurfaceMesh, Extras], bytes]] = {
    "glb": glb_bytes,
    "obj": obj_bytes,
    "ply": ply_bytes,
    "stl": stl_bytes,
}
