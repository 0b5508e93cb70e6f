"""Fragments: the surface points that pixels show, as differentiable functions of the mesh's vertices."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nfsd3d.generators.mesh.gather import gather
from nfsd3d.generators.mesh.rasterize.coverage import doubled_area, screen_weights
from nfsd3d.views.cameras import Cameras


def project(vertices: Tensor, cameras: Cameras) -> Tensor:
    """[B,V,3] the world's ``vertices`` [V,3] on each camera's screen, as ``coverage.cover`` reads them."""
    local = torch.einsum("vj,bji->bvi", vertices, cameras.rotations.to(vertices))
    local = local - torch.einsum("bj,bji->bi", cameras.positions, cameras.rotations)[:, None].to(vertices)
    depth = -local[..., 2]
    # Behind the camera the image means nothing, and the inverse depth says so.
    inverse = torch.where(depth > NEAREST, 1 / depth.clamp(min=NEAREST), -1.0)
    scale = cameras.height / 2 / torch.tan(cameras.fovy.to(vertices) / 2)[:, None] * inverse
    x = cameras.width / 2 + local[..., 0] * scale
    y = cameras.height / 2 - local[..., 1] * scale
    return torch.stack([x, y, inverse], dim=-1)


NEAREST = 1e-3
"""Near plane, in world units before the camera."""


@dataclass(frozen=True)
class Fragments:
    """The P pixels that show a triangle.

    ``pixel`` [P]: index into all views' pixels [B,H,W]; ``triangle`` [P]; ``weights`` [P,3]: barycentric coordinates on
    the surface; ``inverse_depth`` [P]. ``corners`` [P,3,3]: the triangle's corners on the screen.
    """

    pixel: Tensor
    triangle: Tensor
    weights: Tensor
    inverse_depth: Tensor
    corners: Tensor

    def interpolate(self, values: Tensor, faces: Tensor) -> Tensor:
        """[P,C] of the values [N,C] at the corners that ``faces`` [F,3] names."""
        return torch.einsum("pk,pkc->pc", self.weights, gather(values, faces[self.triangle]))

    @torch.no_grad()
    def footprint(self, uv: Tensor, faces: Tensor) -> Tensor:
        """[P] the longer side of a pixel on the map ``uv`` [T,2], in the map's units.

        ``faces`` [F,3]: the corners of triangles in ``uv``. Treated as constant by gradients.
        """
        corner = uv[faces[self.triangle]]
        here = torch.einsum("pk,pkc->pc", self.weights, corner)
        (ax, ay), (bx, by), (cx, cy) = (self.corners[:, k, :2].unbind(-1) for k in range(3))
        along_x = torch.stack([by - cy, cy - ay, ay - by], dim=-1)
        along_y = torch.stack([cx - bx, ax - cx, bx - ax], dim=-1)
        slope = torch.stack([along_x, along_y], dim=1) / doubled_area(self.corners)[:, None, None]
        scaled = slope * (self.corners[..., 2] / self.inverse_depth[:, None])[:, None]
        return torch.einsum("pdk,pkc->pdc", scaled, corner - here[:, None]).norm(dim=-1).amax(-1)


def fragments(screen: Tensor, faces: Tensor, shown: Tensor) -> Fragments:
    """The fragments of ``shown`` [B,H,W], the triangle of each pixel (see ``coverage.cover``)."""
    _, height, width = shown.shape
    pixel = (shown.reshape(-1) >= 0).nonzero()[:, 0]
    triangle = shown.reshape(-1)[pixel]
    view = pixel // (height * width)
    corners = gather(screen.reshape(-1, 3), faces[triangle] + (view * screen.shape[1])[:, None])
    row, column = pixel % (height * width) // width, pixel % width
    centre = torch.stack([column, row], dim=-1).to(screen) + 0.5
    weights = screen_weights(corners[..., :2], centre) * corners[..., 2]
    inverse_depth = weights.sum(-1)
    return Fragments(pixel, triangle, weights / inverse_depth[:, None], inverse_depth, corners)
