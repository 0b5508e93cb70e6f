#!/usr/bin/env bash
# trimesh 5.2.0: vertex colours of a GLB beside a material are read rightly, and written again black, or not at all.
#
# Expected: glTF allows COLOR_0 of three or four floats, beside a material; what was read rightly can be exported.
# Seen: the floats are cut to whole numbers of 255, so that full red is written as 1 of 255, without a warning. Without
# alpha the export raises a ValueError about a shape of 4. (nfsd3d reads and writes GLB files itself.)
#
# Exits with 0 while this is so, with 1 when it has changed.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet trimesh==5.2.0 numpy==2.4.6

cat > again.py <<'PY'
import json
import struct

import trimesh

POSITIONS = struct.pack("<9f", 0, 0, 0, 1, 0, 0, 0, 1, 0)
INDICES = struct.pack("<3H2x", 0, 1, 2)
COLORS = [(1, 0, 0), (0, 1, 0), (0, 0, 1)]


def glb(width):
    colors = b"".join(struct.pack(f"<{width}f", *(*color, 1)[:width]) for color in COLORS)
    body = POSITIONS + colors + INDICES
    attributes = {"POSITION": 0, "COLOR_0": 1}
    document = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "materials": [{"pbrMetallicRoughness": {"metallicFactor": 0}}],
        "meshes": [{"primitives": [{"attributes": attributes, "indices": 2, "material": 0}]}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3", "min": [0, 0, 0], "max": [1, 1, 0]},
            {"bufferView": 1, "componentType": 5126, "count": 3, "type": f"VEC{width}"},
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


for name, width in (("with alpha", 4), ("without alpha", 3)):
    with open(f"{width}.glb", "wb") as file:
        file.write(glb(width))
    scene = trimesh.load_scene(f"{width}.glb")
    (mesh,) = scene.geometry.values()
    read = mesh.visual.vertex_attributes["color"][:, :3].astype(int).tolist()
    try:
        with open("again.glb", "wb") as file:
            file.write(scene.export(file_type="glb"))
        (mesh,) = trimesh.load_scene("again.glb").geometry.values()
        colors = mesh.visual.vertex_attributes["color"][:, :3]
        written = f"written as {colors.tolist()} of {255 if colors.dtype == 'uint8' else 1}"
    except ValueError as error:
        written = f"ValueError: {error}"
    print(f"{name}: read {read}, {written}")
PY
venv/bin/python again.py | tee seen
diff - seen <<'SEEN'
with alpha: read [[1, 0, 0], [0, 1, 0], [0, 0, 1]], written as [[1, 0, 0], [0, 1, 0], [0, 0, 1]] of 255
without alpha: read [[1, 0, 0], [0, 1, 0], [0, 0, 1]], ValueError: cannot reshape array of size 9 into shape (4)
SEEN
