"""Reads a glTF 2.0 document from a GLB file: its JSON, buffers and accessors.

trimesh 5.2 flips UVs in 32 bits, which loses their last bits, takes normalized integers as they are
(``findings/trimesh_normalized_positions.sh``), and ignores ``texCoord``, texture transforms and skins.
"""

import base64
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from nfsd3d.export.formats.source.messages import MAX_TRIANGLES
from nfsd3d.export.formats.source.siblings import SiblingFiles

_COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}


def glb_chunks(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON document and the binary chunk of a GLB.

    Raises:
        ValueError: it is none, or cut off.
    """
    magic, version, length = struct.unpack_from("<4sII", content)
    if magic != b"glTF":
        raise ValueError("it does not begin as a GLB")
    if version != 2:
        raise ValueError(f"it is of version {version} of glTF, and not of 2")
    if length > len(content):
        raise ValueError(f"it has {len(content):,} bytes of {length:,}")
    chunks, start = [], 12
    while start + 8 <= length:
        size, _ = struct.unpack_from("<I4s", content, start)
        chunks.append(content[start + 8 : start + 8 + size])
        start += 8 + size
    return json.loads(chunks[0]), b"".join(chunks[1:2])


def is_own(document: Mapping[str, Any]) -> bool:
    """Whether ``nfsd3d`` wrote a glTF document."""
    return str(document.get("asset", {}).get("generator", "")).startswith("nfsd3d ")


def to_world(content: bytes) -> tuple[float, NDArray[np.float64]] | None:
    """Scale and shift [3] to the world of a GLB that ``nfsd3d`` wrote at another size or origin; else None."""
    document, _ = glb_chunks(content)
    extras = document["asset"].get("extras") if is_own(document) else None
    numbers = extras.get("to_world") if isinstance(extras, dict) else None
    if not (isinstance(numbers, list) and len(numbers) == 4 and all(isinstance(n, int | float) for n in numbers)):
        return None
    return (float(numbers[0]), np.array(numbers[1:], np.float64)) if np.isfinite(numbers).all() else None


class GltfDocument:
    """A glTF document and its buffers.

    ``json``: the document; ``siblings``: the files beside the GLB ``path``; ``buffers``: contents by number, of which
    0 may be the ``body`` of the GLB.
    """

    def __init__(self, path: Path, document: dict[str, Any], body: bytes) -> None:
        self.path, self.json = path, document
        self.siblings = SiblingFiles(path.parent)
        self.buffers = [
            self.bytes_at(buffer["uri"]) if "uri" in buffer else body if index == 0 else b""
            for index, buffer in enumerate(document.get("buffers", []))
        ]

    def bytes_at(self, uri: str) -> bytes:
        """The bytes in a data URI, or in a file."""
        if uri.startswith("data:"):
            return base64.b64decode(uri.partition(",")[2])
        return self.siblings.read(unquote(uri))

    def array(self, index: int) -> NDArray[Any]:
        """[N,C] the elements of an accessor, in its C components; normalized integers become 32-bit floats."""
        accessor = self.json["accessors"][index]
        kind, width = np.dtype(_COMPONENTS[accessor["componentType"]]), _WIDTHS[accessor["type"]]
        shape = (accessor["count"], width)
        if shape[0] > 3 * MAX_TRIANGLES:
            raise ValueError(f"accessor {index} has {shape[0]:,} elements")
        if "bufferView" in accessor:
            values = self._view(accessor, kind, shape)
        elif "sparse" in accessor:
            values = np.zeros(shape, kind)
        else:
            raise ValueError(f"accessor {index} has no data")
        if "sparse" in accessor:
            sparse, values = accessor["sparse"], values.copy()
            where = np.dtype(_COMPONENTS[sparse["indices"]["componentType"]])
            rows = self._view(sparse["indices"], where, (sparse["count"], 1))[:, 0]
            values[rows] = self._view(sparse["values"], kind, (sparse["count"], width))
        if accessor.get("normalized"):
            values = np.maximum(values / np.float32(np.iinfo(kind).max), np.float32(-1))
        return values

    def _view(self, place: Mapping[str, Any], kind: np.dtype[Any], shape: tuple[int, int]) -> NDArray[Any]:
        """The elements of ``shape`` in a buffer view, which may be interleaved with others."""
        view = self.json["bufferViews"][place["bufferView"]]
        start = view.get("byteOffset", 0) + place.get("byteOffset", 0)
        row = view.get("byteStride", kind.itemsize * shape[1])
        # numpy refuses what exceeds the buffer.
        return np.ndarray(shape, kind, self.buffers[view["buffer"]], start, (row, kind.itemsize))

    def view_bytes(self, index: int) -> bytes:
        """The content of a buffer view."""
        view = self.json["bufferViews"][index]
        start = view.get("byteOffset", 0)
        return self.buffers[view["buffer"]][start : start + view["byteLength"]]
