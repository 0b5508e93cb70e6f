"""The subprocess that runs xatlas, so that it can be killed after a time limit: ``unwrap_worker.py IN.npz OUT.npz``.

It is run as a file and imports nothing of the package. IN has ``vertices`` [V,3] float32, ``faces`` [F,3] uint32 and
the ``size`` of the texture in texels. OUT has ``source`` [T] (the vertex of each texture vertex), ``faces`` [F,3] (of
texture vertices) and ``uv`` [T,2] in [0,1].
"""

import sys

import numpy as np
import xatlas

PADDING = 3
"""Texels between charts: a filter that reaches one texel beyond a chart meets no other chart."""

MAX_COST = 1.0
"""Maximum cost of growing a chart. On six uneven objects of 50,000 triangles there are as many charts and seams as with
xatlas's default of 2 or with 8, one object having more and another fewer, in nine tenths of the time.
"""


def main(given: str, result: str) -> None:
    """Unwraps ``given`` into ``result``."""
    mesh = np.load(given)
    charts, packing = xatlas.ChartOptions(), xatlas.PackOptions()
    charts.max_cost = MAX_COST
    packing.resolution, packing.padding, packing.bilinear = int(mesh["size"]), PADDING, True
    atlas = xatlas.Atlas()
    atlas.add_mesh(mesh["vertices"], mesh["faces"])
    atlas.generate(charts, packing)
    source, faces, uv = atlas[0]
    np.savez(result, source=source, faces=faces, uv=uv)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
