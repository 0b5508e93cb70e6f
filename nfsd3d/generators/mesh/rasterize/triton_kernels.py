"""The search for the nearest triangle of every pixel, in Triton: one program per triangle and view."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nfsd3d.generators.nerf.launch_triton import check_device, launch

TILE = 8
"""Side in pixels of the square of which a program tests all pixels at once."""

LAST = 2**31 - 1
"""The largest number of a triangle."""


def cover_triton(screen: Tensor, faces: Tensor, height: int, width: int) -> Tensor:
    """As ``coverage.cover``.

    Raises InputError for tensors that are not on a GPU, except in Triton's interpreter.
    """
    check_device(screen, "backend.rasterizer")
    views = len(screen)
    keys = torch.zeros(views, height, width, dtype=torch.int64, device=screen.device)
    corners = screen[:, faces].double()
    # NaN is no pixel: a triangle that has one is, as for the other implementations, not drawn.
    corners = torch.where(corners.isnan().any(-1).any(-1)[..., None, None], 0.0, corners).contiguous()
    launch(_nearest, (len(faces), views), corners, keys, len(faces), height, width, TILE=TILE, LAST=LAST)
    return torch.where(keys > 0, LAST - (keys & 0xFFFFFFFF), -1)


@triton.jit(do_not_specialize=["count", "height", "width"])
def _nearest(corners, keys, count, height, width, TILE: tl.constexpr, LAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Writes the nearest triangle of ``corners`` [B,count,3,3] float64 at every pixel into ``keys`` [B,height,width].

    A key is the bits of the inverse depth as float32, which for positive numbers grow with it, and below them the
    triangle's number counted from the end: the largest key is the nearest triangle, of equally near ones the first.
    """
    face, view = tl.program_id(0), tl.program_id(1)
    corner = corners + (view.to(tl.int64) * count + face) * 9
    ax, ay, az = tl.load(corner), tl.load(corner + 1), tl.load(corner + 2)
    bx, by, bz = tl.load(corner + 3), tl.load(corner + 4), tl.load(corner + 5)
    cx, cy, cz = tl.load(corner + 6), tl.load(corner + 7), tl.load(corner + 8)
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    before = (tl.minimum(tl.minimum(az, bz), cz) > 0) & (area != 0)
    # Within the image first: a corner far outside is no integer.
    left = tl.maximum(tl.minimum(tl.minimum(tl.minimum(ax, bx), cx), width), 0.0)
    right = tl.minimum(tl.maximum(tl.maximum(tl.maximum(ax, bx), cx), 0.0), width)
    top = tl.maximum(tl.minimum(tl.minimum(tl.minimum(ay, by), cy), height), 0.0)
    bottom = tl.minimum(tl.maximum(tl.maximum(tl.maximum(ay, by), cy), 0.0), height)
    first_row, last_row = tl.ceil(top - 0.5).to(tl.int32), tl.floor(bottom - 0.5).to(tl.int32)
    first_column, last_column = tl.ceil(left - 0.5).to(tl.int32), tl.floor(right - 0.5).to(tl.int32)
    if before:
        for row in range(first_row, last_row + 1, TILE):
            for column in range(first_column, last_column + 1, TILE):
                rows, columns = row + tl.arange(0, TILE)[:, None], column + tl.arange(0, TILE)[None, :]
                x, y = columns.to(tl.float64) + 0.5, rows.to(tl.float64) + 0.5
                of_a = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
                of_b = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
                of_c = 1.0 - of_a - of_b
                near = of_a * az + of_b * bz + of_c * cz
                inside = (of_a >= -1e-9) & (of_b >= -1e-9) & (of_c >= -1e-9)
                inside = inside & (rows <= last_row) & (columns <= last_column)
                bits = near.to(tl.float32).to(tl.int32, bitcast=True).to(tl.int64)
                pixel = (view.to(tl.int64) * height + rows) * width + columns
                tl.atomic_max(keys + pixel, (bits << 32) | (LAST - face), mask=inside)
