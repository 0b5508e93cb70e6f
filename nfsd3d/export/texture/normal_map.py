"""Normal maps: what simplification took from a surface, as directions in the tangent space of the simplified mesh.

Tangents are those of MikkTSpace (Mikkelsen 2008), which glTF names and Blender computes by itself: the directions in
which u grows, of all triangles at a texture vertex, weighted by their angles there, in the plane of its normal.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from nfsd3d.export.isosurface import Surface, downhill
from nfsd3d.export.level_set import LevelSet
from nfsd3d.export.texture.bake import bake_image
from nfsd3d.export.texture.unwrap import Charts
from nfsd3d.generators.mesh.surface import FloatArray, NormalMap

STEEPEST = 0.1
"""Least component along the mesh's normal of a direction that is kept, others are bent up to it; and least sine of the
angle between normal and tangent."""

REACH = 3.0
"""Largest way from the mesh to the surface, in steps of its differences."""


def bake_normal_map(
    surface: Surface,
    normals: FloatArray,
    charts: Charts,
    size: int,
    level_set: LevelSet,
    step: float,
    on_progress: Callable[[float], None] | None = None,
) -> NormalMap:
    """The normal map of ``size``^2 texels of a simplified ``surface`` with ``normals`` [V,3], of the ``level_set``.

    A texel's direction is that of the level set where it is nearest, from differences over ``step`` world units.
    """
    tangents = vertex_tangents(surface, normals, charts)

    def directions_at(face: NDArray, weights: NDArray) -> NDArray:
        def at(values: NDArray, faces: NDArray) -> NDArray:
            return np.einsum("nk,nkc->nc", weights, values[faces[face]])

        points = at(surface.vertices, surface.faces).astype(np.float32)
        normal, tangent = unit(at(normals, surface.faces)), at(tangents, charts.faces)
        sign, tangent = np.where(tangent[:, 3:] < 0, -1.0, 1.0), unit(tangent[:, :3])
        upright = np.linalg.norm(np.cross(normal, tangent), axis=-1) < STEEPEST
        tangent[upright] = unit(_across(normal[upright]))  # readers cannot do better there, either
        frame = np.stack([tangent, sign * np.cross(normal, tangent), normal], axis=-1)
        finer = _nearest_direction(level_set, points, normal, step)
        local = np.linalg.solve(frame, finer[..., None])[..., 0]
        local[:, 2] = np.maximum(local[:, 2], STEEPEST)
        return unit(local)

    image = bake_image(charts, size, 1, directions_at, _encoded, on_progress)
    return NormalMap(image, tangents)


def vertex_tangents(surface: Surface, normals: FloatArray, charts: Charts) -> FloatArray:
    """[T,4] tangents of the texture vertices, and the signs of their bitangents; see :class:`NormalMap`."""
    corner, uv = surface.vertices[surface.faces].astype(np.float64), charts.uv[charts.faces].astype(np.float64)
    (du1, dv1), (du2, dv2) = ((uv[:, k] - uv[:, 0]).T for k in (1, 2))
    turn = du1 * dv2 - du2 * dv1  # twice the triangle's area in the image; positive: clockwise, because v points down
    along_u = np.sign(turn)[:, None] * (
        (corner[:, 1] - corner[:, 0]) * dv2[:, None] - (corner[:, 2] - corner[:, 0]) * dv1[:, None]
    )
    sums, signs = np.zeros((len(charts.uv), 3)), np.zeros(len(charts.uv))
    normal = normals[charts.source].astype(np.float64)
    for k in range(3):
        ahead, behind = (corner[:, (k + other) % 3] - corner[:, k] for other in (1, 2))
        angle = np.arccos((unit(ahead) * unit(behind)).sum(-1).clip(-1, 1))
        vertex = charts.faces[:, k]
        flat = unit(along_u - (along_u * normal[vertex]).sum(-1, keepdims=True) * normal[vertex])
        np.add.at(sums, vertex, angle[:, None] * flat)
        np.add.at(signs, vertex, -np.sign(turn) * angle)
    sums -= (sums * normal).sum(-1, keepdims=True) * normal
    lost = np.linalg.norm(sums, axis=-1) < 1e-6
    sums[lost] = _across(normal[lost])
    return np.concatenate([unit(sums), np.where(signs < 0, -1.0, 1.0)[:, None]], axis=1).astype(np.float32)


def unit(vectors: NDArray) -> NDArray:
    """[N,3] vectors of length 1. Zero stays zero: what has no direction adds none."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-30)


def _nearest_direction(level_set: LevelSet, points: FloatArray, normal: NDArray, step: float) -> NDArray:
    """[N,3] unit directions of the level set beside the ``points`` [N,3] of a mesh, or ``normal`` where it has none."""
    down = downhill(level_set, points, step)
    steepness = np.maximum((down**2).sum(-1, keepdims=True), 1e-12)
    way = level_set.offset(points)[:, None] / steepness * down  # Newton's step to the level
    way *= np.minimum(1, REACH * step / np.maximum(np.linalg.norm(way, axis=-1, keepdims=True), 1e-30))
    found = unit(downhill(level_set, (points + way).astype(np.float32), step))
    return np.where((found * normal).sum(-1, keepdims=True) > 0, found, normal)


def _across(normal: NDArray) -> NDArray:
    """[N,3] any vectors at right angles to ``normal`` [N,3]."""
    axis = np.eye(3)[np.abs(normal).argmin(axis=-1)]
    return np.cross(normal, axis)


def _encoded(directions: NDArray) -> NDArray[np.uint8]:
    return np.round((directions * 0.5 + 0.5).clip(0, 1) * 255).astype(np.uint8)
