"""Regularisers of a surface's shape, and its normals."""

import torch
import torch.nn.functional as F
from torch import Tensor

from nfsd3d.generators.mesh.gather import gather
from nfsd3d.generators.mesh.rasterize.silhouettes import Edges

SLIVER = 1e-3
"""Triangles of a smaller part of the mean area have shorter normals."""


def face_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """[F,3] normals of the triangles ``faces`` [F,3], twice their area long."""
    a, b, c = gather(vertices, faces).unbind(1)
    return torch.linalg.cross(b - a, c - a)


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """[V,3] unit normals, the mean of the triangles around each vertex weighted by their area."""
    normals = face_normals(vertices, faces)
    summed = torch.zeros_like(vertices).index_add(0, faces.T.reshape(-1), normals.repeat(3, 1))
    return F.normalize(summed, dim=-1)


def laplacian(vertices: Tensor, edges: Edges) -> Tensor:
    """Mean squared distance of the vertices [V,3] to the mean of their neighbours, over the mean squared edge length.

    The uniform Laplacian (Sorkine, Eurographics STAR 2005).
    """
    start, end = edges.ends.unbind(1)
    between = gather(vertices, end) - gather(vertices, start)
    summed = torch.zeros_like(vertices).index_add(0, start, between).index_add(0, end, -between)
    count = torch.bincount(edges.ends.reshape(-1), minlength=len(vertices)).clamp(min=1).to(vertices)
    return (summed / count[:, None]).square().sum(-1).mean() / between.detach().square().sum(-1).mean()


def normal_consistency(vertices: Tensor, faces: Tensor, edges: Edges) -> Tensor:
    """Mean of 1 - cosine between the normals on both sides of the edges that have two triangles."""
    areas = face_normals(vertices, faces)
    size = areas.norm(dim=-1, keepdim=True)
    # A sliver's normal turns with the slightest move: its gradient would drown all others.
    normals = areas / size.clamp(min=SLIVER * size.detach().mean())
    inner = edges.faces[:, 1] >= 0
    if not inner.any():
        return vertices.new_zeros(())
    first, second = edges.faces[inner].unbind(1)
    return 1 - (gather(normals, first) * gather(normals, second)).sum(-1).mean()
