#!/usr/bin/env bash
# trimesh 5.2.0: relative indices of an OBJ count from the end of the file, so that its triangles are others.
#
# Expected: an index of -1 is the last vertex before its line, as the format says. A file whose objects each have their
# vertices and then faces of relative indices is read like the same file with absolute indices.
# Seen: -1 is the last vertex of the file. Of two objects, the second is read twice and the first is lost, without an
# error or a warning. (nfsd3d makes the indices absolute before trimesh reads them. Reported in
# https://github.com/mikedh/trimesh/issues/2364 for 4.6.3.)
#
# Exits with 0 while this is so, with 1 when it has changed.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet trimesh==5.2.0 numpy==2.4.6

cat > absolute.obj <<'OBJ'
o left
v 0 0 0
v 1 0 0
v 0 1 0
f 1 2 3
o right
v 10 0 0
v 11 0 0
v 10 1 0
f 4 5 6
OBJ
sed 's/^f .*/f -3 -2 -1/' absolute.obj > relative.obj

cat > read.py <<'PY'
import trimesh

for name in ("absolute", "relative"):
    mesh = trimesh.load_mesh(f"{name}.obj", process=False)
    print(f"{name}: {len(mesh.vertices)} vertices, x of the triangles: {mesh.triangles[:, :, 0].astype(int).tolist()}")
PY
venv/bin/python read.py | tee seen
diff - seen <<'SEEN'
absolute: 6 vertices, x of the triangles: [[0, 1, 0], [10, 11, 10]]
relative: 3 vertices, x of the triangles: [[10, 11, 10], [10, 11, 10]]
SEEN
