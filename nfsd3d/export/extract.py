"""Mesh extraction: from a density field to a simplified, coloured mesh, with a texture if it can be unwrapped."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from nfsd3d.export.isosurface import Surface, extract_surface, surface_normals
from nfsd3d.export.level_set import DensityGrid, LevelSet, sample_density, visible_level_set
from nfsd3d.export.simplify import simplify
from nfsd3d.export.texture.bake import Colored, bake, surface_colors
from nfsd3d.export.texture.normal_map import bake_normal_map
from nfsd3d.export.texture.unwrap import UnwrapFailed, unwrap
from nfsd3d.generators.mesh.surface import FloatArray, SurfaceMesh, Texture
from nfsd3d.settings.export import ExportSettings

REACH = 0.03
"""Distance before and behind the surface over which its colour is composited, as a fraction of the radius."""

COARSE_CELLS = 128
"""Maximum cells per axis of the grid on which the level and the hidden voxels are computed."""

STAGES = {"density": 0.1, "surface": 0.2, "simplification": 0.25, "charts": 0.55, "colours": 1.0}
"""The stages, and the cumulative fraction of the run time at the end of each (approximate, with a texture)."""

LOD_SHARE = 0.3
"""The time of a level of detail, as a fraction of the mesh's (approximate)."""

OnProgress = Callable[[str, float], None]
"""Called with the present stage, and the fraction in [0,1] of the whole extraction that is done."""


@dataclass(frozen=True)
class ExtractedMesh:
    """A mesh, and facts about its extraction.

    ``level`` is the density of its surface, ``density_range`` that of the coarse grid; None for a mesh that comes from
    no field. ``untextured`` is the reason if
    a requested texture is missing. ``lods`` are levels of detail, each with fewer triangles.
    """

    mesh: SurfaceMesh
    level: float | None
    density_range: tuple[float, float] | None
    untextured: str | None = None
    lods: tuple[SurfaceMesh, ...] = ()

    @property
    def facts(self) -> dict[str, Any]:
        """Plain values about the mesh, for summaries."""
        texture = self.mesh.texture
        return {
            "vertices": len(self.mesh.vertices),
            "faces": len(self.mesh.faces),
            **({} if self.level is None else {"threshold": round(self.level, 4)}),
            **({} if self.density_range is None else {"density_range": [round(d, 4) for d in self.density_range]}),
            "texture_size": None if texture is None else texture.size,
            **({} if self.untextured is None else {"untextured": self.untextured}),
            **({"lods": [len(mesh.faces) for mesh in self.lods]} if self.lods else {}),
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
    whole = 1 + LOD_SHARE * len(settings.lods)

    def progress(stage: str, done: float, number: int = 0) -> None:
        if on_progress is not None and number == 0:
            on_progress(stage, done / whole)
        elif on_progress is not None:
            on_progress(f"level of detail {number}, {stage}", (1 + LOD_SHARE * (number - 1 + done)) / whole)

    split = -(-settings.resolution // COARSE_CELLS)
    cells = -(-settings.resolution // split)
    progress("density", 0.0)
    grid = sample_density(solid.density, radius, cells + 1, device)
    level_set = _level_set(solid, grid, settings.threshold, device)
    progress("surface", STAGES["density"])
    surface = extract_surface(level_set, grid, split)
    progress("simplification", STAGES["surface"])
    color = partial(surface_colors, solid, radius=radius, reach=REACH * radius, device=device)
    levels, reasons = [], []
    for number, faces in enumerate((settings.max_faces, *settings.lods)):
        surface = simplify(surface, faces)
        # The field's gradient below the length of the mesh's edges is noise.
        normals = surface_normals(level_set, surface, _mean_edge(surface) / 2)
        texture = None
        if settings.texture_size:
            told = partial(progress, number=number)
            try:
                texture = _texture(surface, normals, color, level_set, settings, told)
            except UnwrapFailed as error:
                where = f"level of detail {number}: " if number else ""
                reasons.append(f"{where}{error}: colours are at the vertices instead")
        vertex_colors = color(surface.vertices, normals)
        levels.append(SurfaceMesh(surface.vertices, surface.faces, normals, vertex_colors, texture))
    progress("colours", 1.0, len(settings.lods))
    mesh, *lods = levels
    span = float(grid.values.min()), float(grid.values.max())
    return ExtractedMesh(mesh, level_set.level, span, next(iter(reasons), None), tuple(lods))


def _level_set(
    solid: Colored, grid: DensityGrid, threshold: float | Literal["auto"], device: torch.device | str
) -> LevelSet:
    """The level set of the threshold.

    Raises:
        InputError: the field is empty.
    """
    if threshold == "auto":
        return visible_level_set(solid.density, grid, device)
    return LevelSet(solid.density, float(threshold), None, grid.radius, device)


def _texture(
    surface: Surface,
    normals: FloatArray,
    color: Callable[[FloatArray, FloatArray], FloatArray],
    level_set: LevelSet,
    settings: ExportSettings,
    progress: OnProgress,
) -> Texture:
    """The surface's texture, with its normal map if it is wanted.

    Raises:
        UnwrapFailed: it could not be unwrapped.
    """

    def on_wait() -> None:
        progress("charts", STAGES["simplification"])

    on_wait()
    charts = unwrap(surface, settings.texture_size, settings.unwrap_timeout, on_wait)
    first, last = STAGES["charts"], STAGES["colours"]

    def on_bake(share: float) -> None:
        progress("colours", first + share * (last - first))

    on_bake(0.0)
    cell = 2 * level_set.radius / settings.resolution
    texture = bake(surface, normals, charts, settings.texture_size, color, cell, on_bake)
    if not settings.normal_map:
        return texture
    on_normals = partial(progress, "normal map")
    normal_map = bake_normal_map(
        surface, normals, charts, settings.texture_size, level_set, cell, lambda share: on_normals(last)
    )
    return replace(texture, normal_map=normal_map)


def _mean_edge(surface: Surface) -> float:
    """Mean edge length of the triangles, in world units."""
    corner = surface.vertices[surface.faces]
    return float(np.linalg.norm(corner - np.roll(corner, 1, axis=1), axis=-1).mean())
