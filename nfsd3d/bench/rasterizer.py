"""Benchmark of the rasteriser: views of a mesh of 20,480 triangles, with their gradients."""

from functools import partial
from typing import cast

import numpy as np
import torch
import trimesh
from torch import Tensor

from nfsd3d.bench.kernels import FAST, Contender
from nfsd3d.generators.mesh.mesh import TexturedMesh
from nfsd3d.generators.mesh.rasterize.coverage import CoverageBackend
from nfsd3d.generators.mesh.settings import MeshSettings
from nfsd3d.generators.mesh.surface import SurfaceMesh, Texture
from nfsd3d.views.cameras import orbit

RADIUS = 0.6
TEXELS = 512
_SETTINGS = MeshSettings(
    radius=1.0,
    geometry_steps=1,
    max_faces=100,
    texture_size=TEXELS,
    laplacian=0.0,
    normal_consistency=0.0,
    background="color",
)


def ball() -> SurfaceMesh:
    """A sphere of 20,480 triangles with a texture of noise."""
    made = trimesh.creation.icosphere(subdivisions=5, radius=RADIUS)
    vertices, faces = np.asarray(made.vertices, np.float32), np.asarray(made.faces, np.int32)
    rng = np.random.default_rng(0)
    texture = Texture(
        (vertices[:, :2] / RADIUS * 0.49 + 0.5).astype(np.float32),
        np.arange(len(vertices), dtype=np.int32),
        faces,
        rng.integers(0, 256, (TEXELS, TEXELS, 3)).astype(np.uint8),
    )
    return SurfaceMesh(vertices, faces, vertices / RADIUS, np.full_like(vertices, 0.5), texture)


def rasterizer_contenders(device: torch.device, views: int, size: int) -> dict[str, Contender]:
    """``views`` views of ``size``^2 pixels by each implementation; gradients are to the vertices and the texture."""
    cameras, mesh = orbit(views, size), ball()

    def render(generator: TexturedMesh) -> Tensor:
        return generator.render(cameras).image

    def train(generator: TexturedMesh) -> Tensor:
        generator.zero_grad()
        render(generator).square().sum().backward()
        return torch.cat([torch.as_tensor(one.grad).flatten() for one in (generator.offset, generator.texture)])

    names = "torch", FAST[device.type]
    built = {name: TexturedMesh(_SETTINGS, mesh, backend=cast(CoverageBackend, name)).to(device) for name in names}
    return {name: Contender(partial(render, one), partial(train, one)) for name, one in built.items()}
