"""Fewer triangles with the same shape."""

import fast_simplification
import numpy as np
from numpy.typing import NDArray

from nfsd3d.export.isosurface import Surface, outward_normals
from nfsd3d.export.mesh import SurfaceMesh


def simplify(surface: Surface, max_faces: int) -> Surface:
    """The surface with at most about ``max_faces`` triangles (quadric edge collapse); itself if it has no more.

    A new normal is the mean of those of the vertices that were merged into its vertex.
    """
    if len(surface.faces) <= max_faces:
        return surface
    vertices, faces, merged = _collapse(surface.vertices, surface.faces, max_faces)
    normals = outward_normals(vertices, faces, _means(surface.normals, merged, len(vertices)))
    return Surface(vertices, faces, normals, surface.level)


def simplify_mesh(mesh: SurfaceMesh, max_faces: int) -> SurfaceMesh:
    """As :func:`simplify` for a finished mesh; colours are averaged as the normals are."""
    if len(mesh.faces) <= max_faces:
        return mesh
    vertices, faces, merged = _collapse(mesh.vertices, mesh.faces, max_faces)
    normals = outward_normals(vertices, faces, _means(mesh.normals, merged, len(vertices)))
    return SurfaceMesh(vertices, faces, normals, _means(mesh.colors, merged, len(vertices)).astype(np.float32))


def _collapse(vertices: NDArray, faces: NDArray, max_faces: int) -> tuple[NDArray, NDArray, NDArray]:
    """New vertices [W,3], new faces, and for each old vertex the new one that it was merged into."""
    _, _, collapses = fast_simplification.simplify(vertices, faces, target_count=max_faces, return_collapses=True)
    new_vertices, new_faces, merged = fast_simplification.replay_simplification(vertices, faces, collapses)
    return new_vertices.astype(np.float32), new_faces.astype(np.int32), merged


def _means(values: NDArray, merged: NDArray, count: int) -> NDArray:
    """[count,...] the mean of ``values`` over the old vertices that became each new one."""
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, merged, values)
    return sums / np.maximum(np.bincount(merged, minlength=count), 1)[:, None]
