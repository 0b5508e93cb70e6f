"""Coverage: the nearest triangle at the centre of every pixel, by one of several implementations.

Only this search has a kernel. What depends smoothly on the vertices (barycentric coordinates, silhouettes) is computed
from its result with differentiable operations of torch, the same for all implementations.
"""

from typing import Literal

import torch
from torch import Tensor

CoverageBackend = Literal["torch", "numba", "triton"]


def cover(screen: Tensor, faces: Tensor, height: int, width: int, backend: CoverageBackend = "torch") -> Tensor:
    """[B,H,W] int64: the triangle that each pixel's centre shows, -1 for none.

    ``screen`` [B,V,3]: x to the right and y downwards, in pixels, and the inverse depth, which is linear across the
    image and positive before the camera (0 or less: triangles with such a vertex are not drawn). ``faces`` [F,3]
    int64. Of two equally near triangles the first is shown. Not differentiable.
    """
    screen = screen.detach()
    if len(faces) == 0:
        return torch.full((len(screen), height, width), -1, device=screen.device)
    if backend == "numba":
        return _numba(screen, faces, height, width)
    if backend == "triton":
        from nfsd3d.generators.mesh.rasterize.triton_kernels import cover_triton

        return cover_triton(screen, faces, height, width)
    return torch.stack([_one_view(view[faces].double(), height, width) for view in screen])


def _numba(screen: Tensor, faces: Tensor, height: int, width: int) -> Tensor:
    from nfsd3d.generators.mesh.rasterize.numba_kernels import BANDS, nearest_triangles
    from nfsd3d.generators.nerf.launch_numba import launch

    face = torch.full((len(screen), height, width), -1)
    nearest = torch.zeros(len(screen), height, width, dtype=torch.float64)
    launch(nearest_triangles, screen.contiguous(), faces.contiguous(), min(BANDS, height), nearest, face)
    return face


CANDIDATES = 2**22
"""Pairs of triangle and pixel that the reference tests together, which bounds its memory."""


def _one_view(corners: Tensor, height: int, width: int) -> Tensor:
    """The reference: [H,W] for the triangles [F,3,3] of one view; tests all pixels of their bounding boxes."""
    left, right = _pixels(corners[..., 0], width)
    top, bottom = _pixels(corners[..., 1], height)
    columns, rows = (right - left + 1).clamp(min=0), (bottom - top + 1).clamp(min=0)
    count = columns * rows * ((doubled_area(corners) != 0) & (corners[..., 2] > 0).all(-1))
    nearest = corners.new_zeros(height * width)
    face = torch.full((height * width,), len(corners), device=corners.device)
    part = (count.cumsum(0) - 1).clamp(min=0) // CANDIDATES  # a part has at most so many, and one triangle more
    for number in range(int(part[-1]) + 1):
        here = ((part == number) & (count > 0)).nonzero()[:, 0]
        triangle = torch.repeat_interleave(here, count[here])
        place = torch.arange(len(triangle), device=corners.device)
        place -= torch.repeat_interleave(count[here].cumsum(0) - count[here], count[here])
        column, row = left[triangle] + place % columns[triangle], top[triangle] + place // columns[triangle]
        centre = torch.stack([column, row], dim=-1).double() + 0.5
        weights = screen_weights(corners[triangle, :, :2], centre)
        inside = (weights >= -1e-9).all(-1)
        triangle, pixel = triangle[inside], (row * width + column)[inside]
        near = (weights[inside] * corners[triangle, :, 2]).sum(-1)
        before = nearest
        nearest = nearest.scatter_reduce(0, pixel, near, "amax")
        face = torch.where(nearest > before, len(corners), face)
        first = near == nearest[pixel]
        face = face.scatter_reduce(0, pixel[first], triangle[first], "amin")
    return torch.where(face == len(corners), -1, face).reshape(height, width)


def _pixels(values: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """First and last pixel whose centre lies within each row's range of ``values`` [F,3]."""
    first = (values.amin(-1) - 0.5).ceil().clamp(0, size).long()
    return first, (values.amax(-1) - 0.5).floor().clamp(-1, size - 1).long()


def doubled_area(corners: Tensor) -> Tensor:
    """[...] twice the signed area of triangles [...,3,2+] on the screen; its sign says which side is seen."""
    (ax, ay), (bx, by), (cx, cy) = (corners[..., k, :2].unbind(-1) for k in range(3))
    return (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)


def screen_weights(corners: Tensor, point: Tensor) -> Tensor:
    """[N,3] weights of the ``corners`` [N,3,2] at ``point`` [N,2], which are linear on the screen."""
    (ax, ay), (bx, by), (cx, cy) = (corners[:, k].unbind(-1) for k in range(3))
    x, y = point.unbind(-1)
    area = doubled_area(corners)
    of_a = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
    of_b = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
    return torch.stack([of_a, of_b, 1 - of_a - of_b], dim=-1)
