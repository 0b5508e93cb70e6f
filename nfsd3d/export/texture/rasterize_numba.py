"""The z-buffer rasterisation kernel, in numba."""

import math

from numba import prange

from nfsd3d.generators.nerf.launch_numba import kernel


@kernel()
def fill(triangles, bands, nearest, face, weights):  # type: ignore[no-untyped-def]
    """Finds for every pixel the nearest of the triangles that cover its centre.

    ``triangles`` [F,3,3] float64: x, y in pixels, and a depth that is linear across the triangle. The rows are split
    into ``bands``. ``nearest`` [H,W] float64 starts as infinity, ``face`` [H,W] int32 as -1; ``weights`` [H,W,3]
    float32 are the barycentric ones. Of two equally near triangles the first is kept.
    """
    height, width = face.shape
    for band in prange(bands):
        top, bottom = band * height // bands, (band + 1) * height // bands
        for f in range(triangles.shape[0]):
            ax, ay, az = triangles[f, 0]
            bx, by, bz = triangles[f, 1]
            cx, cy, cz = triangles[f, 2]
            first = max(top, int(math.ceil(min(ay, by, cy) - 0.5)))
            last = min(bottom - 1, int(math.floor(max(ay, by, cy) - 0.5)))
            area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
            if first > last or area == 0.0:
                continue
            left = max(0, int(math.ceil(min(ax, bx, cx) - 0.5)))
            right = min(width - 1, int(math.floor(max(ax, bx, cx) - 0.5)))
            for row in range(first, last + 1):
                y = row + 0.5
                for column in range(left, right + 1):
                    x = column + 0.5
                    wa = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
                    wb = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
                    wc = 1.0 - wa - wb
                    if wa < -1e-9 or wb < -1e-9 or wc < -1e-9:
                        continue
                    depth = wa * az + wb * bz + wc * cz
                    if depth < nearest[row, column]:
                        nearest[row, column] = depth
                        face[row, column] = f
                        weights[row, column, 0] = wa
                        weights[row, column, 1] = wb
                        weights[row, column, 2] = wc
