#!/usr/bin/env bash
# lib3mf 2.5.0: writing a file leaves the process in the locale "C", so that Python opens text files as ASCII from then on.
#
# Expected: a library that writes a file does not change the locale of its process, or restores it.
# Seen: after WriteToFile, LC_CTYPE is "C" where it was "C.UTF-8"; locale.getencoding() says ANSI_X3.4-1968, and open()
# without an encoding fails at the first letter that is no ASCII. (nfsd3d restores the locale.)
#
# Exits with 0 while this is so, with 1 when it has changed.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet lib3mf==2.5.0

cat > write.py <<'PY'
import ctypes
import locale
import pathlib

import lib3mf

pathlib.Path("words.txt").write_text("Würfel", encoding="utf-8")
print("before:", locale.setlocale(locale.LC_CTYPE), pathlib.Path("words.txt").read_text())
library = lib3mf.get_wrapper()
model = library.CreateModel()
mesh = model.AddMeshObject()
corners = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
triangles = [(0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3)]
mesh.SetGeometry(
    [lib3mf.Position((ctypes.c_float * 3)(*corner)) for corner in corners],
    [lib3mf.Triangle((ctypes.c_uint32 * 3)(*triangle)) for triangle in triangles],
)
model.AddBuildItem(mesh, library.GetIdentityTransform())
model.QueryWriter("3mf").WriteToFile("solid.3mf")
try:
    pathlib.Path("words.txt").read_text()
    print("after: read")
except UnicodeDecodeError:
    print("after:", locale.setlocale(locale.LC_CTYPE), "UnicodeDecodeError")
PY
LC_ALL=C.UTF-8 venv/bin/python write.py | tee seen
printf 'before: C.UTF-8 Würfel\nafter: C UnicodeDecodeError\n' | diff - seen
