#!/usr/bin/env bash
# trimesh 5.2.0: the materials of an OBJ are read in reverse order, even with maintain_order=True.
#
# Expected: maintain_order ("make the strongest attempt possible to not reorder faces or vertices") keeps the order of
# triangles in the file, at least where the faces of each material stand together.
# Seen: the last material comes first, in a scene and in a mesh, so that labels in the file's order of triangles are on
# other triangles. The same faces without materials keep their order. (nfsd3d reads OBJ itself.)
#
# Exits with 0 while this is so, with 1 when it has changed.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet trimesh==5.2.0 numpy==2.4.6

printf 'newmtl red\nKd 1 0 0\nnewmtl green\nKd 0 1 0\nnewmtl blue\nKd 0 0 1\n' > colors.mtl
cat > colored.obj <<'OBJ'
mtllib colors.mtl
v 1 0 0
v 1 1 0
v 1 0 1
v 2 0 0
v 2 1 0
v 2 0 1
v 3 0 0
v 3 1 0
v 3 0 1
usemtl red
f 1 2 3
usemtl green
f 4 5 6
usemtl blue
f 7 8 9
OBJ
grep -v mtl colored.obj > plain.obj

cat > read.py <<'PY'
import trimesh

for name in ("plain", "colored"):
    options = {"maintain_order": True, "process": False}
    mesh = trimesh.load_mesh(f"{name}.obj", **options)
    print(f"{name}: x of the triangles: {mesh.triangles[:, 0, 0].astype(int).tolist()}")
print("materials:", *trimesh.load_scene("colored.obj", **options).geometry)
PY
venv/bin/python read.py | tee seen
diff - seen <<'SEEN'
plain: x of the triangles: [1, 2, 3]
colored: x of the triangles: [3, 2, 1]
materials: blue green red
SEEN
