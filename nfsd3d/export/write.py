"""Mesh file formats: GLB and OBJ (y-up by convention), PLY and STL (z-up, as the world).

World axes (front +x, left +y, up +z) become glTF's (front +Z, left +X, up +Y): a cyclic permutation, so the mesh is
rotated, not mirrored. OBJ files have the same axes, as modelling programs expect. A world unit is a unit of the file (a
metre, in glTF): the object lies in the cube of half-width ``generator.radius``.
"""

import io
import json
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from numpy.typing import NDArray

import nfsd3d
from nfsd3d.errors import InputError
from nfsd3d.export.mesh import SurfaceMesh, srgb_to_linear
from nfsd3d.runs.files import write_bytes

Extras = Mapping[str, str | int | float]
Json = dict[str, object]
Files = dict[str, bytes]
"""Contents by file name, in the order of writing: a file comes after those it refers to."""

GENERATOR = f"nfsd3d {nfsd3d.__version__}"
UNITS = "1 unit = 1 world unit; the object lies in [-radius, radius]^3"

_FLOAT, _USHORT, _UINT = 5126, 5123, 5125  # glTF component types
_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963  # glTF buffer view targets
_LINEAR, _LINEAR_MIPMAP_LINEAR, _CLAMP_TO_EDGE = 9729, 9987, 33071  # glTF sampler filters and wrapping
_STL_HEADER = 80


def write_mesh(mesh: SurfaceMesh, path: Path, extras: Extras) -> list[Path]:
    """Writes ``mesh`` in the format of ``path``'s suffix, each file atomically, with ``extras`` as metadata.

    Returns ``path`` and the files written beside it: the material and texture of an OBJ.

    Raises:
        InputError: the suffix is no known format.
    """
    files = FORMATS[known_format(path.suffix.lstrip("."))](mesh, path.stem, extras)
    # The requested file, under exactly the requested name, comes last, after the files it refers to.
    *beside, (_, content) = files.items()
    for name, part in beside:
        write_bytes(path.with_name(name), part)
    write_bytes(path, content)
    return [path, *(path.with_name(name) for name, _ in beside)]


def write_meshes(mesh: SurfaceMesh, folder: Path, formats: Sequence[str], extras: Extras) -> list[Path]:
    """Writes ``model.<format>`` for every format into ``folder``, which is created; returns the paths of all files.

    Raises:
        InputError: a format is unknown; nothing is written.
    """
    paths = [folder / f"model.{known_format(name)}" for name in formats]
    folder.mkdir(exist_ok=True)
    return [written for path in paths for written in write_mesh(mesh, path, extras)]


def known_format(name: str) -> str:
    """``name`` in lower case.

    Raises:
        InputError: the format is unknown.
    """
    if name.lower() not in FORMATS:
        raise InputError(f"--formats, export.formats: {name!r} is not known: choose from {', '.join(FORMATS)}")
    return name.lower()


def y_up(vectors: NDArray) -> NDArray:
    """[N,3] world vectors (x front, y left, z up) in glTF's axes (X left, Y up, Z front)."""
    return vectors[:, [1, 2, 0]]


def png_bytes(image: NDArray[np.uint8]) -> bytes:
    """A PNG of ``image`` [H,W,3]."""
    return imageio.imwrite("<bytes>", image, extension=".png")


def glb_bytes(mesh: SurfaceMesh, extras: Extras) -> bytes:
    """A binary glTF 2.0 file: one mesh, y-up, with normals and a matt material; ``extras`` in ``asset.extras``.

    The material's base colour is the texture, an embedded PNG (sRGB by specification); vertices are duplicated along
    its seams. Without a texture, colours are vertex colours, linear by specification, in 16 bits: 8 linear bits would
    leave only a handful of steps for the darkest fifth of the sRGB range.
    """
    buffer = _Buffer()
    texture = mesh.texture
    rows = slice(None) if texture is None else texture.source
    positions = np.ascontiguousarray(y_up(mesh.vertices)[rows], dtype="<f4")
    normals = np.ascontiguousarray(y_up(mesh.normals)[rows], dtype="<f4")
    bounds = {"min": positions.min(0).tolist(), "max": positions.max(0).tolist()}
    attributes = {
        "POSITION": buffer.array(positions, _FLOAT, "VEC3", **bounds),
        "NORMAL": buffer.array(normals, _FLOAT, "VEC3"),
    }
    material: Json = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    images: Json = {}
    if texture is None:
        colors = np.full((len(positions), 4), 65535, dtype="<u2")
        colors[:, :3] = np.round(srgb_to_linear(mesh.colors.astype(np.float64)) * 65535)
        attributes["COLOR_0"] = buffer.array(colors, _USHORT, "VEC4", normalized=True)
    else:
        attributes["TEXCOORD_0"] = buffer.array(texture.uv.astype("<f4"), _FLOAT, "VEC2")
        filters = {"magFilter": _LINEAR, "minFilter": _LINEAR_MIPMAP_LINEAR}
        png = buffer.view(png_bytes(texture.image))
        images = {
            "samplers": [{**filters, "wrapS": _CLAMP_TO_EDGE, "wrapT": _CLAMP_TO_EDGE}],
            "images": [{"bufferView": png, "mimeType": "image/png", "name": "albedo"}],
            "textures": [{"source": 0, "sampler": 0}],
        }
        material["baseColorTexture"] = {"index": 0}
    faces = mesh.faces if texture is None else texture.faces
    indices = buffer.array(faces.astype("<u4").reshape(-1), _UINT, "SCALAR")
    document = {
        "asset": {
            "version": "2.0",
            "generator": GENERATOR,
            "extras": {**extras, "axes": "+Y up, +Z front, +X left", "units": UNITS},
        },
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "model"}],
        "meshes": [
            {"name": "model", "primitives": [{"attributes": attributes, "indices": indices, "material": 0}]},
        ],
        "materials": [{"name": "albedo", "pbrMetallicRoughness": material}],
        **images,
        "accessors": buffer.accessors,
        "bufferViews": buffer.views,
        "buffers": [{"byteLength": len(buffer.content)}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    body = bytes(buffer.content)
    header = struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + len(body))
    return header + struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(body), b"BIN\0") + body


class _Buffer:
    """The binary chunk of a glTF file under construction, with its buffer views and accessors."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.views: list[Json] = []
        self.accessors: list[Json] = []

    def view(self, content: bytes, **properties: object) -> int:
        """Appends ``content``, padded to 4 bytes; returns the index of its buffer view."""
        self.views.append({"buffer": 0, "byteOffset": len(self.content), "byteLength": len(content), **properties})
        self.content += content + b"\0" * (-len(content) % 4)
        return len(self.views) - 1

    def array(self, values: NDArray, component: int, kind: str, **properties: object) -> int:
        """Appends an array of vertex attributes, or of indices (``kind`` "SCALAR"); returns its accessor's index."""
        target = _ELEMENT_ARRAY_BUFFER if kind == "SCALAR" else _ARRAY_BUFFER
        view = self.view(values.tobytes(), target=target)
        accessor = {"bufferView": view, "componentType": component, "count": len(values), "type": kind, **properties}
        self.accessors.append(accessor)
        return len(self.accessors) - 1


def _glb(mesh: SurfaceMesh, stem: str, extras: Extras) -> Files:
    return {f"{stem}.glb": glb_bytes(mesh, extras)}


def _obj(mesh: SurfaceMesh, stem: str, extras: Extras) -> Files:
    """Wavefront OBJ, y-up, with material and texture, if there is one, in files named after it.

    It has positions with sRGB colours (the usual "v x y z r g b"), normals, texture coordinates (from the lower left
    corner) and faces. Positions are not duplicated along seams, so the mesh stays closed.
    """
    safe = re.sub(r"\s+", "_", stem)  # names in an OBJ end at a space
    facts = {"generator": GENERATOR, **extras, "axes": "+Y up, +Z front, +X left", "units": UNITS}
    comments = "".join(f"# {key}: {' '.join(str(value).split())}\n" for key, value in facts.items())
    text = io.StringIO()
    text.write(comments if mesh.texture is None else f"{comments}mtllib {safe}.mtl\n")
    text.write("o model\n")
    np.savetxt(text, np.hstack([y_up(mesh.vertices), mesh.colors]), fmt="v %.6g %.6g %.6g %.4f %.4f %.4f")
    np.savetxt(text, y_up(mesh.normals), fmt="vn %.4f %.4f %.4f")
    files: Files = {}
    if mesh.texture is None:
        corners, form = [mesh.faces, mesh.faces], "%d//%d"
    else:
        np.savetxt(text, mesh.texture.uv * [1, -1] + [0, 1], fmt="vt %.6f %.6f")
        corners, form = [mesh.faces, mesh.texture.faces, mesh.faces], "%d/%d/%d"
        material = f"{comments}newmtl albedo\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {safe}.png\n"
        files = {f"{safe}.png": png_bytes(mesh.texture.image), f"{safe}.mtl": material.encode()}
        text.write("usemtl albedo\n")
    # OBJ indices start at 1; a vertex and its normal share their index.
    np.savetxt(text, np.stack(corners, axis=-1).reshape(len(mesh.faces), -1) + 1, fmt=f"f {form} {form} {form}")
    return {**files, f"{stem}.obj": text.getvalue().encode()}


def _ply(mesh: SurfaceMesh, stem: str, extras: Extras) -> Files:
    """Binary PLY, z-up, with normals and 8-bit sRGB vertex colours."""
    import trimesh

    content = trimesh.exchange.ply.export_ply(mesh.to_trimesh(), vertex_normal=True)
    facts = {"generator": GENERATOR, **extras, "axes": "+Z up, +X front, +Y left", "units": UNITS}
    # The header is ASCII.
    lines = (f"comment {key}: {' '.join(str(value).split())}\n" for key, value in facts.items())
    comments = "".join(lines).encode("ascii", "backslashreplace")
    first, second, rest = content.split(b"\n", 2)
    return {f"{stem}.ply": first + b"\n" + second + b"\n" + comments + rest}


def _stl(mesh: SurfaceMesh, stem: str, extras: Extras) -> Files:
    """Binary STL, z-up, without colours."""
    import trimesh

    content = trimesh.exchange.stl.export_stl(mesh.to_trimesh())
    about = f"{GENERATOR}, z up: {' '.join(str(extras.get('prompt', '')).split())}"
    header = about.encode("ascii", "replace")[:_STL_HEADER].ljust(_STL_HEADER)
    return {f"{stem}.stl": header + content[_STL_HEADER:]}


FORMATS: dict[str, Callable[[SurfaceMesh, str, Extras], Files]] = {"glb": _glb, "obj": _obj, "ply": _ply, "stl": _stl}

TEXTURED = frozenset({"glb", "obj"})
"""The formats that support a texture."""
