"""Reads the GLB files that this package writes, quantized ones too."""

import json
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
from numpy.typing import NDArray

from nfsd3d.errors import InputError
from nfsd3d.export.formats.glb import glb_bytes
from nfsd3d.generators.mesh.surface import SurfaceMesh, Texture, linear_to_srgb

MESHOPT = "EXT_meshopt_compression"
_COMPONENTS = {5120: "<i1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
"""Kinds of numbers, by glTF's component type."""
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
_LARGEST = {5120: 127, 5122: 32767, 5123: 65535}
"""The numbers that mean 1 where they are normalized."""


def read_glb(path: Path) -> SurfaceMesh:
    """The mesh of a GLB that ``nfsd3d`` wrote, in world coordinates; vertices along seams are doubled, as in the file.

    Raises:
        InputError: it is compressed by meshopt.
    """
    document, body = _parts(path, path.read_bytes())
    if MESHOPT in document.get("extensionsRequired", ()):
        raise InputError(f"{path}: is compressed for the web; read it in three.js, or export it with --compress none")
    primitive, node = document["meshes"][0]["primitives"][0], document["nodes"][0]

    def array(index: int) -> NDArray:
        accessor = document["accessors"][index]
        view, component = document["bufferViews"][accessor["bufferView"]], accessor["componentType"]
        kind, width = np.dtype(_COMPONENTS[component]), _WIDTHS[accessor["type"]]
        stride = view.get("byteStride", width * kind.itemsize) // kind.itemsize
        values = np.frombuffer(body, kind, accessor["count"] * stride, view["byteOffset"])
        values = values.reshape(-1, stride)[:, :width]
        return values / np.float32(_LARGEST[component]) if accessor.get("normalized") else values

    world = [2, 0, 1]  # of glTF's axes
    attributes = primitive["attributes"]
    positions = array(attributes["POSITION"]) * node.get("scale", 1.0) + node.get("translation", 0.0)
    factor, *offset = document["asset"]["extras"].get("to_world", (1.0, 0.0, 0.0, 0.0))
    vertices = (positions[:, world] * factor + offset).astype(np.float32)
    normals = array(attributes["NORMAL"])[:, world]
    faces = array(primitive["indices"]).reshape(-1, 3).astype(np.int32)
    if "images" not in document:
        light = array(attributes["COLOR_0"])[:, :3]
        return SurfaceMesh(vertices, faces, normals, linear_to_srgb(light).astype(np.float32))
    view = document["bufferViews"][document["images"][0]["bufferView"]]
    image = imageio.imread(body[view["byteOffset"] : view["byteOffset"] + view["byteLength"]])
    uv = array(attributes["TEXCOORD_0"])
    texture = Texture(uv, np.arange(len(vertices), dtype=np.int32), faces, image)
    return SurfaceMesh(vertices, faces, normals, np.zeros_like(vertices), texture)


def is_placed(path: Path) -> bool:
    """Whether a GLB has another size or origin than in the world."""
    document, _ = _parts(path, path.read_bytes())
    return "to_world" in document["asset"].get("extras", {})


def world_glb(path: Path) -> bytes:
    """A GLB file as it is in the world, without compression: for viewers of this project.

    Raises:
        InputError: it is compressed by meshopt.
    """
    content = path.read_bytes()
    document, _ = _parts(path, content)
    plain = "to_world" not in document["asset"].get("extras", {}) and not document.get("extensionsRequired")
    return content if plain else glb_bytes(read_glb(path), {})


def _parts(path: Path, content: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON document and the binary chunk of a GLB.

    Raises:
        InputError: it is none.
    """
    length = int.from_bytes(content[12:16], "little")
    try:
        document = json.loads(content[20 : 20 + length])
        assert content[:4] == b"glTF" and isinstance(document, dict) and "asset" in document
    except (ValueError, AssertionError) as error:
        raise InputError(f"{path}: is no GLB file, or cut off; write it again: nfsd3d export RUN_DIR") from error
    return document, content[20 + length + 8 :]
