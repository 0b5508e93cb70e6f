#!/usr/bin/env bash
# fast_simplification 0.2.0 (also behind trimesh's simplify_quadric_decimation): the result depends on the mesh's unit.
#
# Expected: quadric edge collapse takes the cheapest edges first, so that a mesh in metres and the same mesh in
# millimetres become the same triangles, as many as target_count says.
# Seen: for 500 of the 20,480 triangles of a bumpy ball, the mean distance from the shape is 2.9 % of its radius if the
# radius is 1, 2.8 % if it is 60, and 5.6 % if it is .06, as for an object of 12 cm in metres. With a radius of 1,000
# there are 708 triangles, with 100,000 nearly all of them, without an error or a warning. The code does not sort edges
# by their cost. It goes through the triangles at most a hundred times, and collapses the edges whose squared error is
# below a bound, which grows from one time to the next and is a plain number, not a share of the mesh's size. In a
# small mesh nearly every edge is below the first bounds, so that edges go in the order of the file until there are few
# enough; in a large one some never are. (nfsd3d gives it every surface in a unit of the surface's size.)
#
# Exits with 0 while this is so, with 1 when it has changed.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet fast-simplification==0.2.0 numpy==2.4.6

cat > sizes.py <<'PY'
import fast_simplification
import numpy as np


def radius(directions):
    """The ball's radius in directions of any length."""
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return 1 + 0.4 * np.sin(8 * directions).prod(axis=1)


def ball(times):
    """An icosahedron, each triangle divided into four several times, with bumps."""
    g = (1 + 5**0.5) / 2
    corners = np.array([(s, t * g) for s in (-1, 1) for t in (-1, 1)])
    zero = np.zeros((4, 1))
    turned = corners[:, 1:], zero, corners[:, :1]
    places = np.concatenate([np.hstack([zero, corners]), np.hstack([corners, zero]), np.hstack(turned)])
    near = np.linalg.norm(places[:, None] - places, axis=-1) < 2.1
    faces = [
        (a, b, c) if np.linalg.det(places[[a, b, c]]) > 0 else (a, c, b)
        for a in range(12) for b in range(a + 1, 12) for c in range(b + 1, 12)
        if near[a, b] and near[b, c] and near[a, c]
    ]
    faces = np.array(faces)
    for _ in range(times):
        edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
        edges, number = np.unique(edges, axis=0, return_inverse=True)
        ab, bc, ca = (number.reshape(-1, 3) + len(places)).T
        places = np.concatenate([places, places[edges].mean(axis=1)])
        a, b, c = faces.T
        parts = (a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)
        faces = np.concatenate([np.stack(part, axis=1) for part in parts])
        places /= np.linalg.norm(places, axis=1, keepdims=True)
    return places * radius(places)[:, None], faces


vertices, faces = ball(5)
found = {}
for size in (0.06, 1, 60, 1_000, 100_000):
    points, triangles = fast_simplification.simplify(
        (vertices * size).astype(np.float32), faces.astype(np.int32), target_count=500
    )
    middle = points[triangles].mean(axis=1) / size
    apart = np.abs(np.linalg.norm(middle, axis=1) - radius(middle)).mean()
    found[size] = len(triangles), apart
    print(f"radius {size:g}: {len(triangles)} of {len(faces)} triangles, {100 * apart:.2f} % of the radius away")
(small, small_apart), (one, one_apart) = found[0.06], found[1]
assert small <= 500 and one <= 500 and small_apart > 1.5 * one_apart
assert found[60][0] <= 500 and found[60][1] < 1.1 * one_apart
assert found[1_000][0] > 550 and found[100_000][0] > 10_000
PY
if venv/bin/python sizes.py; then
    echo "as described"
else
    echo "changed: see the output above"
    exit 1
fi
