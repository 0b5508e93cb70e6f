#!/usr/bin/env bash
# trimesh 5.2.0: positions of a GLB with KHR_mesh_quantization are read without their normalization.
#
# Expected: normalized 16-bit positions are numbers in [-1, 1], as the extension says (or the file is refused, as other
# required extensions are).
# Seen: they are taken as whole numbers, without a warning: a model 2 units wide becomes 65,534 units wide. The same
# positions without "normalized", scaled by their node, have the right size. (nfsd3d writes them so.)
#
# Exits with 0 while this is so, with 1 when it has changed.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet trimesh==5.2.0 numpy==2.4.6

cat > read.py <<'PY'
import json
import struct

import numpy as np
import trimesh

corners = np.array([[-1, -1, -1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], dtype="<u2")
steps = np.zeros((4, 4), dtype="<i2")  # three numbers, and two bytes so that each element begins at a multiple of four
steps[:, :3] = corners * 32767
body = steps.tobytes() + faces.tobytes()


def glb(normalized):
    accessor = {"bufferView": 0, "componentType": 5122, "count": 4, "type": "VEC3"}
    node = {"mesh": 0}
    if normalized:
        accessor["normalized"] = True
    else:
        node["scale"] = [1 / 32767] * 3
    accessor |= {"min": [-32767] * 3, "max": [32767] * 3}
    document = {
        "asset": {"version": "2.0"},
        "extensionsUsed": ["KHR_mesh_quantization"],
        "extensionsRequired": ["KHR_mesh_quantization"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [node],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": [accessor, {"bufferView": 1, "componentType": 5123, "count": 12, "type": "SCALAR"}],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": 32, "byteStride": 8, "target": 34962},
            {"buffer": 0, "byteOffset": 32, "byteLength": 24, "target": 34963},
        ],
        "buffers": [{"byteLength": len(body)}],
    }
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    size = 12 + 8 + len(text) + 8 + len(body)
    parts = struct.pack("<4sII", b"glTF", 2, size), struct.pack("<I4s", len(text), b"JSON"), text
    return b"".join([*parts, struct.pack("<I4s", len(body), b"BIN\0"), body])


for name, normalized in {"normalized": True, "scaled by the node": False}.items():
    with open("model.glb", "wb") as file:
        file.write(glb(normalized))
    print(f"{name}: {trimesh.load_scene('model.glb').extents.max():.0f} wide")
PY
venv/bin/python read.py | tee seen
printf 'normalized: 65534 wide\nscaled by the node: 2 wide\n' | diff - seen
