"""From a generator to a coloured mesh, with a texture where one can be made."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from nfsd3d.export.isosurface import Surface, extract_surface, surface_normals
from nfsd3d.export.level_set import DensityGrid, LevelSet, sample_density, visible_level_set
from nfsd3d.export.mesh import FloatArray, SurfaceMesh, Texture
from nfsd3d.export.simplify import simplify
from nfsd3d.export.texture.bake import Colored, bake, surface_colors
from nfsd3d.export.texture.unwrap import UnwrapFailed, unwrap
from nfsd3d.settings.export import ExportSettings

REACH = 0.03
"""Of the world's half-width: how far before and behind the surface its colour is looked for."""

COARSE_CELLS = 128
"""Per axis, at most: the grid on which level and matter are looked for."""

STAGES = {"density": 0.1, "surface": 0.2, "simplification": 0.25, "charts": 0.55, "colours": 1.0}
"""What is done in turn, and which part of the time has passed after it (about, with a texture)."""

OnProgress = Callable[[str, float], None]
"""Is told the stage that begins or goes on, and the share in [0,1] of everything that is done."""


@dataclass(frozen=True)
class ExtractedMesh:
    """A mesh and how it came about.

    ``level`` is the density of its surface, ``density_range`` that of the coarse grid. ``untextured`` says why there is
    no texture although one was wanted.
    """

    mesh: SurfaceMesh
    level: float
    density_range: tuple[float, float]
    untextured: str | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """Plain numbers about the mesh, for summaries."""
        texture = self.mesh.texture
        return {
            "vertices": len(self.mesh.vertices),
            "faces": len(self.mesh.faces),
            "threshold": round(self.level, 4),
            "density_range": [round(density, 4) for density in self.density_range],
            "texture_size": None if texture is None else texture.size,
            **({} if self.untextured is None else {"untextured": self.untextured}),
        }


def extract_mesh(
    solid: Colored,
    radius: float,
    settings: ExportSettings,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
) -> ExtractedMesh:
    """The surface of ``solid`` in the cube [-radius, radius]^3, with the colours that its renders show.

    Raises:
        InputError: the field is empty or full at the threshold, or not finite.
    """
    tell = on_progress or (lambda stage, done: None)
    split = -(-settings.resolution // COARSE_CELLS)
    cells = -(-settings.resolution // split)
    tell("density", 0.0)
    grid = sample_density(solid.density, radius, cells + 1, device)
    level_set = _level_set(solid, grid, settings.threshold, device)
    tell("surface", STAGES["density"])
    surface = extract_surface(level_set, grid, split)
    tell("simplification", STAGES["surface"])
    surface = simplify(surface, settings.max_faces)
    # Rougher than the edges of the mesh a gradient is noise to it.
    normals = surface_normals(level_set, surface, _mean_edge(surface) / 2)
    color = partial(surface_colors, solid, radius=radius, reach=REACH * radius, device=device)
    texture, untextured = None, None
    if settings.texture_size:
        try:
            texture = _texture(surface, normals, color, settings, tell)
        except UnwrapFailed as error:
            untextured = f"{error}: colours are at the vertices instead"
    tell("colours", 1.0)
    mesh = SurfaceMesh(surface.vertices, surface.faces, normals, color(surface.vertices, normals), texture)
    return ExtractedMesh(mesh, level_set.level, (float(grid.values.min()), float(grid.values.max())), untextured)


def _level_set(
    solid: Colored, grid: DensityGrid, threshold: float | Literal["auto"], device: torch.device | str
) -> LevelSet:
    """What the threshold asks for.

    Raises:
        InputError: an empty field, or a threshold that no density reaches.
    """
    if threshold == "auto":
        return visible_level_set(solid.density, grid, device)
    return LevelSet(solid.density, float(threshold), None, grid.radius, device)


def _texture(
    surface: Surface,
    normals: FloatArray,
    color: Callable[[FloatArray, FloatArray], FloatArray],
    settings: ExportSettings,
    tell: OnProgress,
) -> Texture:
    """The surface's texture.

    Raises:
        UnwrapFailed: there are no charts for it.
    """

    def on_wait() -> None:
        tell("charts", STAGES["simplification"])

    on_wait()
    charts = unwrap(surface, settings.texture_size, settings.unwrap_timeout, on_wait)
    first, last = STAGES["charts"], STAGES["colours"]

    def on_band(share: float) -> None:
        tell("colours", first + share * (last - first))

    on_band(0.0)
    return bake(surface, normals, charts, settings.texture_size, color, on_band)


def _mean_edge(surface: Surface) -> float:
    """Mean length of the triangles' edges, in world units."""
    corner = surface.vertices[surface.faces]
    return float(np.linalg.norm(corner - np.roll(corner, 1, axis=1), axis=-1).mean())
