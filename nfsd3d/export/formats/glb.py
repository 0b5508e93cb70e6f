"""Binary glTF: positions in metres, y-up, as its specification says."""

import json
import struct

import numpy as np
from numpy.typing import NDArray

from nfsd3d.export.formats.base import GENERATOR, Extras, Files, png_bytes
from nfsd3d.export.formats.meshopt import compressed
from nfsd3d.export.formats.placement import Placed, place
from nfsd3d.generators.mesh.surface import NormalMap, SurfaceMesh, srgb_to_linear
from nfsd3d.settings.export import Placement

Json = dict[str, object]

QUANTIZATION = "KHR_mesh_quantization"
_FLOAT, _UINT, _USHORT, _SHORT, _BYTE = 5126, 5125, 5123, 5122, 5120  # glTF component types
_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963  # glTF buffer view targets
_LINEAR, _LINEAR_MIPMAP_LINEAR, _CLAMP_TO_EDGE = 9729, 9987, 33071  # glTF sampler filters and wrapping


def glb_bytes(mesh: SurfaceMesh, extras: Extras) -> bytes:
    """A GLB of a mesh of the world's size, y-up: see :func:`glb_file`."""
    return glb_file(place(mesh, Placement(), "y", "m", turns=False), extras)


def glb_file(placed: Placed, extras: Extras, *, quantized: bool = False) -> bytes:
    """A binary glTF 2.0 file: one mesh with normals and a matt material; ``extras`` in ``asset.extras``.

    The material's base colour is the texture, an embedded PNG (sRGB by specification); vertices are duplicated along
    its seams. A normal map is another PNG, with tangents. Without a texture, colours are vertex colours, linear by
    specification, as floats: 8 linear bits would leave only a handful of steps for the darkest fifth of the sRGB range,
    and trimesh 5.2 misreads 16.

    ``quantized``: positions in 16 bits, normals in 8 (KHR_mesh_quantization).
    """
    buffer = _Buffer()
    mesh, texture = placed.mesh, placed.mesh.texture
    rows = slice(None) if texture is None else texture.source
    positions = np.ascontiguousarray(placed.turned(mesh.vertices)[rows], dtype="<f4")
    normals = np.ascontiguousarray(placed.turned(mesh.normals)[rows], dtype="<f4")
    node: Json = {"mesh": 0, "name": "model"}
    if quantized:
        middle = (positions.min(0) + positions.max(0)) / 2
        half = max(float(np.abs(positions - middle).max()), 1e-12)
        # Not normalized, but scaled by the node: trimesh 5.2 takes normalized numbers as they are.
        steps = np.round((positions - middle) / half * 32767).astype("<i2")
        node |= {"translation": middle.tolist(), "scale": [half / 32767] * 3}
        attributes = {
            "POSITION": buffer.array(steps, _SHORT, "VEC3", **_bounds(steps)),
            "NORMAL": buffer.array(np.round(normals * 127).astype("<i1"), _BYTE, "VEC3", normalized=True),
        }
    else:
        attributes = {
            "POSITION": buffer.array(positions, _FLOAT, "VEC3", **_bounds(positions)),
            "NORMAL": buffer.array(normals, _FLOAT, "VEC3"),
        }
    material: Json = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    images: Json = {}
    relief: Json = {}
    if texture is None:
        light = srgb_to_linear(mesh.colors.astype(np.float64))
        colors = np.concatenate([light, np.ones_like(light[:, :1])], axis=1).astype("<f4")
        attributes["COLOR_0"] = buffer.array(colors, _FLOAT, "VEC4")
    else:
        attributes["TEXCOORD_0"] = buffer.array(texture.uv.astype("<f4"), _FLOAT, "VEC2")
        filters = {"magFilter": _LINEAR, "minFilter": _LINEAR_MIPMAP_LINEAR}
        pictures = {"albedo": texture.image}
        material["baseColorTexture"] = {"index": 0}
        if texture.normal_map is not None:
            pictures["normals"] = texture.normal_map.image
            relief = {"normalTexture": {"index": 1}}
            attributes["TANGENT"] = _tangents(buffer, placed, texture.normal_map, quantized=quantized)
        images = {
            "samplers": [{**filters, "wrapS": _CLAMP_TO_EDGE, "wrapT": _CLAMP_TO_EDGE}],
            "images": [
                {"bufferView": buffer.view(png_bytes(image)), "mimeType": "image/png", "name": name}
                for name, image in pictures.items()
            ],
            "textures": [{"source": number, "sampler": 0} for number in range(len(pictures))],
        }
    faces = mesh.faces if texture is None else texture.faces
    kind, component = ("<u2", _USHORT) if len(positions) < 65535 else ("<u4", _UINT)  # 65535 itself is reserved
    indices = buffer.array(faces.astype(kind).reshape(-1), component, "SCALAR")
    document = {
        "asset": {
            "version": "2.0",
            "generator": GENERATOR,
            "extras": {**extras, **placed.facts},
        },
        **({"extensionsUsed": [QUANTIZATION], "extensionsRequired": [QUANTIZATION]} if quantized else {}),
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [node],
        "meshes": [
            {"name": "model", "primitives": [{"attributes": attributes, "indices": indices, "material": 0}]},
        ],
        "materials": [{"name": "albedo", "pbrMetallicRoughness": material, **relief}],
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


def _tangents(buffer: "_Buffer", placed: Placed, normal_map: NormalMap, *, quantized: bool) -> int:
    """The accessor of the tangents of a normal map's texture vertices."""
    tangents = np.concatenate([placed.turned(normal_map.tangents[:, :3]), normal_map.tangents[:, 3:]], axis=1)
    if quantized:
        return buffer.array(np.round(tangents * 127).astype("<i1"), _BYTE, "VEC4", normalized=True)
    return buffer.array(np.ascontiguousarray(tangents, dtype="<f4"), _FLOAT, "VEC4")


def glb_files(placed: Placed, stem: str, extras: Extras) -> Files:
    """The file of a :func:`glb_file`, compressed as the placement asks for."""
    if placed.compress == "web":
        return {f"{stem}.glb": compressed(glb_file(placed, extras))}
    return {f"{stem}.glb": glb_file(placed, extras, quantized=placed.compress == "quantized")}


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
        stride: Json = {}
        if kind != "SCALAR" and (unused := -values.itemsize * values.shape[1] % 4):  # an element begins at 4 bytes
            values = np.pad(values, [(0, 0), (0, unused // values.itemsize)])
            stride = {"byteStride": values.itemsize * values.shape[1]}
        view = self.view(values.tobytes(), target=target, **stride)
        accessor = {"bufferView": view, "componentType": component, "count": len(values), "type": kind, **properties}
        self.accessors.append(accessor)
        return len(self.accessors) - 1


def _bounds(positions: NDArray) -> Json:
    return {"min": positions.min(0).tolist(), "max": positions.max(0).tolist()}
