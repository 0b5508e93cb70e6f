#!/usr/bin/env bash
# trimesh 5.2.0: 16-bit vertex colours of a GLB are read modulo 256, so that colours come out wrong without a warning.
#
# Expected: glTF allows COLOR_0 as normalized unsigned short, as Blender writes it. 300 / 65535, nearly black, becomes 1
# of 255; 32768 / 65535, a middle value, 128.
# Seen: the lower byte is taken: 300 becomes 44, and 32768 becomes 0. Only 0 and 65535 are right. The same colours as
# normalized bytes or floats are read rightly. (nfsd3d reads GLB files itself.)
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

import trimesh

POSITIONS = struct.pack("<9f", 0, 0, 0, 1, 0, 0, 0, 1, 0)
INDICES = struct.pack("<3H2x", 0, 1, 2)
VALUES = [300, 32768, 65535]  # of 65535: a grey each vertex


def glb(colors, component):
    body = POSITIONS + colors + INDICES
    color = {"bufferView": 1, "componentType": component, "count": 3, "type": "VEC4"}
    if component != 5126:  # not a float
        color["normalized"] = True
    document = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "COLOR_0": 1}, "indices": 2}]}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3", "min": [0, 0, 0], "max": [1, 1, 0]},
            color,
            {"bufferView": 2, "componentType": 5123, "count": 3, "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": 36, "target": 34962},
            {"buffer": 0, "byteOffset": 36, "byteLength": len(colors), "target": 34962},
            {"buffer": 0, "byteOffset": 36 + len(colors), "byteLength": 6, "target": 34963},
        ],
        "buffers": [{"byteLength": len(body)}],
    }
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    size = 12 + 8 + len(text) + 8 + len(body)
    parts = struct.pack("<4sII", b"glTF", 2, size), struct.pack("<I4s", len(text), b"JSON"), text
    return b"".join([*parts, struct.pack("<I4s", len(body), b"BIN\0"), body])


formats = {
    "floats": (5126, "f", [value / 65535 for value in VALUES], 1.0),
    "8 bits": (5121, "B", [round(value / 257) for value in VALUES], 255),
    "16 bits": (5123, "H", VALUES, 65535),
}
for name, (component, code, greys, opaque) in formats.items():
    colors = b"".join(struct.pack(f"<4{code}", grey, grey, grey, opaque) for grey in greys)
    with open(f"{name}.glb", "wb") as file:
        file.write(glb(colors, component))
    mesh = trimesh.load_mesh(f"{name}.glb", process=False)
    print(f"{name}: {mesh.visual.vertex_colors.tolist()}")
PY
venv/bin/python read.py | tee seen
diff - seen <<'SEEN'
floats: [[1, 1, 1, 255], [128, 128, 128, 255], [255, 255, 255, 255]]
8 bits: [[1, 1, 1, 255], [128, 128, 128, 255], [255, 255, 255, 255]]
16 bits: [[44, 44, 44, 255], [0, 0, 0, 255], [255, 255, 255, 255]]
SEEN
