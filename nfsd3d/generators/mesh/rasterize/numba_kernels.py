"""The search for the nearest triangle of every pixel, in numba."""

import math

import numpy as np
from numba import prange

from nfsd3d.generators.nerf.launch_numba import kernel

BANDS = 8
"""Horizontal bands of a view; each is filled by one thread."""


@kernel()
def nearest_triangles(screen, faces, bands, nearest, face):  # type: ignore[no-untyped-def]
    """Finds for every pixel the triangle of the largest inverse depth at its centre.

    ``screen`` [B,V,3] and ``faces`` [F,3] as for ``coverage.cover``. ``nearest`` [B,H,W] float64 starts as 0, ``face``
    [B,H,W] int64 as -1.
    """
    views, height, width = face.shape
    for item in prange(views * bands):
        view, band = item // bands, item % bands
        top, bottom = band * height // bands, (band + 1) * height // bands
        points = screen[view]
        for f in range(faces.shape[0]):
            a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
            az, bz, cz = np.float64(points[a, 2]), np.float64(points[b, 2]), np.float64(points[c, 2])
            if min(az, bz, cz) <= 0.0:
                continue
            ay, by, cy = np.float64(points[a, 1]), np.float64(points[b, 1]), np.float64(points[c, 1])
            first = max(top, int(math.ceil(min(ay, by, cy) - 0.5)))
            last = min(bottom - 1, int(math.floor(max(ay, by, cy) - 0.5)))
            if first > last:
                continue
            ax, bx, cx = np.float64(points[a, 0]), np.float64(points[b, 0]), np.float64(points[c, 0])
            left = max(0, int(math.ceil(min(ax, bx, cx) - 0.5)))
            right = min(width - 1, int(math.floor(max(ax, bx, cx) - 0.5)))
            area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
            if left > right or area == 0.0:
                continue
            for row in range(first, last + 1):
                y = row + 0.5
                for column in range(left, right + 1):
                    x = column + 0.5
                    wa = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
                    wb = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
                    wc = 1.0 - wa - wb
                    if wa < -1e-9 or wb < -1e-9 or wc < -1e-9:
                        continue
                    near = wa * az + wb * bz + wc * cz
                    if near > nearest[view, row, column]:
                        nearest[view, row, column] = near
                        face[view, row, column] = f
