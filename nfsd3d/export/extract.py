"""From a generator to a coloured mesh."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nfsd3d.export.isosurface import DensityGrid, extract_surface, sample_density, visible_level
from nfsd3d.export.mesh import FloatArray, SurfaceMesh
from nfsd3d.export.simplify import simplify

VERTICES_PER_BATCH = 2**15
COLOR_SAMPLES = 8


class Solid(Protocol):
    """What a generator must offer to become a mesh; neither function keeps a gradient."""

    def density(self, positions: Tensor) -> Tensor:
        """[N] densities at the world points ``positions`` [N,3]."""
        ...

    def albedo(self, positions: Tensor) -> Tensor:
        """[N,3] sRGB colours in [0,1] at the world points ``positions`` [N,3]."""
        ...


@dataclass(frozen=True)
class MeshSettings:
    """``resolution`` samples per axis; ``threshold`` a density or "auto"; ``max_faces`` after simplification.

    ``min_component``: connected parts smaller than this fraction of the largest one are dropped.
    """

    resolution: int = 160
    threshold: float | Literal["auto"] = "auto"
    max_faces: int = 50_000
    min_component: float = 0.02


@dataclass(frozen=True)
class ExtractedMesh:
    """A mesh and how it came about: the density ``level`` used and the ``density_range`` of the sampled grid."""

    mesh: SurfaceMesh
    level: float
    density_range: tuple[float, float]

    @property
    def facts(self) -> dict[str, Any]:
        """Plain numbers about the mesh, for summaries."""
        return {
            "vertices": len(self.mesh.vertices),
            "faces": len(self.mesh.faces),
            "threshold": round(self.level, 4),
            "density_range": [round(density, 4) for density in self.density_range],
        }


def extract_mesh(
    solid: Solid, radius: float, settings: MeshSettings, device: torch.device | str = "cpu"
) -> ExtractedMesh:
    """The surface of ``solid`` in the cube [-radius, radius]^3, with the colours that its renders show.

    Raises:
        InputError: the field is empty or full at the threshold, or not finite.
    """
    grid = sample_density(solid.density, radius, settings.resolution, device)
    level = visible_level(grid) if settings.threshold == "auto" else float(settings.threshold)
    surface = extract_surface(grid, level, settings.min_component)
    surface = simplify(surface, settings.max_faces)
    colors = surface_colors(solid, surface.vertices, surface.normals, grid, device)
    mesh = SurfaceMesh(surface.vertices, surface.faces, surface.normals, colors)
    return ExtractedMesh(mesh, level, (float(grid.values.min()), float(grid.values.max())))


@torch.no_grad()
def surface_colors(
    solid: Solid, vertices: FloatArray, normals: FloatArray, grid: DensityGrid, device: torch.device | str = "cpu"
) -> FloatArray:
    """[V,3] the colour that a ray along each vertex' inward normal would show.

    The ray is composited as in rendering over two voxels on both sides of the surface; what it has not absorbed by
    then takes the colour of its last sample.
    """
    reach = 2 * grid.spacing
    depths = torch.linspace(-reach, reach, COLOR_SAMPLES, device=device)
    step = depths[1] - depths[0]
    colors: list[NDArray] = []
    for start in range(0, len(vertices), VERTICES_PER_BATCH):
        stop = start + VERTICES_PER_BATCH
        origin = torch.from_numpy(vertices[start:stop]).to(device)
        inward = -torch.from_numpy(normals[start:stop]).to(device)
        points = (origin[:, None] + depths[None, :, None] * inward[:, None]).clamp(-grid.radius, grid.radius)
        flat = points.reshape(-1, 3)
        optical = solid.density(flat).float().reshape(-1, COLOR_SAMPLES) * step
        optical[:, -1] = torch.inf
        before = torch.nn.functional.pad(optical[:, :-1].cumsum(1), (1, 0))
        weights = torch.exp(-before) * (1 - torch.exp(-optical))
        albedo = solid.albedo(flat).float().reshape(-1, COLOR_SAMPLES, 3)
        colors.append((weights[..., None] * albedo).sum(1).clamp(0, 1).cpu().numpy())
    return np.concatenate(colors)
