"""The subprocess that runs xatlas, so that it can be killed after a time limit: ``unwrap_worker.py IN.npz OUT.npz``.

It is run as a file and imports nothing of the package. IN has ``vertices`` [V,3] float32, ``faces`` [F,3] uint32 and
the ``size`` of the texture in texels. OUT has ``source`` [T] (the vertex of each texture vertex), ``faces`` [F,3] (of
texture vertices) and ``uv`` [T,2] in [0,1].
"""

import sys
from collections.abc import Iterator

import numpy as np
import xatlas
from numpy.typing import NDArray

PADDING = 3
"""Texels between charts: a filter that reaches one texel beyond a chart meets no other chart."""

MAX_COST = 1.0
"""Maximum cost of growing a chart. On six uneven objects of 50,000 triangles there are as many charts and seams as with
xatlas's default of 2 or with 8, one object having more and another fewer, in nine tenths of the time.
"""


PART_FACES = 6_250
"""Triangles of a part, at most. Of sixteen parts instead of eight there are a fifth more charts."""


def main(given: str, result: str) -> None:
    """Unwraps ``given`` into ``result``."""
    mesh = np.load(given)
    vertices, faces = mesh["vertices"], mesh["faces"]
    charts, packing = xatlas.ChartOptions(), xatlas.PackOptions()
    charts.max_cost = MAX_COST
    packing.resolution, packing.padding, packing.bilinear = int(mesh["size"]), PADDING, True
    atlas = xatlas.Atlas()
    parts = list(cut(vertices[faces].mean(axis=1), np.arange(len(faces))))
    used = []
    for part in parts:
        own, corners = np.unique(faces[part], return_inverse=True)
        atlas.add_mesh(vertices[own], corners.reshape(-1, 3).astype(np.uint32))
        used.append(own)
    atlas.generate(charts, packing)

    all_faces, all_source, all_uv, count = np.empty_like(faces), [], [], 0
    for number, (part, own) in enumerate(zip(parts, used, strict=True)):
        source, corners, uv = atlas[number]
        all_faces[part] = corners + count
        all_source.append(own[source])
        all_uv.append(uv)
        count += len(source)
    np.savez(result, source=np.concatenate(all_source), faces=all_faces, uv=np.concatenate(all_uv))


def cut(centres: NDArray[np.float32], part: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Halves of the triangles ``part`` by their ``centres`` [F,3] along its longest side, down to ``PART_FACES``."""
    if len(part) <= PART_FACES:
        yield part
        return
    own = centres[part]
    order = part[np.argsort(own[:, np.ptp(own, axis=0).argmax()], kind="stable")]
    for half in np.array_split(order, 2):
        yield from cut(centres, half)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
