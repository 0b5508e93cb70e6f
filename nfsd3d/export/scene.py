"""The mesh of a scene, whatever generates it: extracted from a field, or the one that was optimised."""

from dataclasses import replace

from nfsd3d.errors import InputError
from nfsd3d.export.extract import ExtractedMesh, OnProgress, extract_mesh
from nfsd3d.export.simplify import simplify_mesh
from nfsd3d.generators.base import SceneGenerator
from nfsd3d.generators.mesh.mesh import TexturedMesh
from nfsd3d.generators.nerf.nerf import NeRF
from nfsd3d.settings.export import ExportSettings


def extract_scene(
    generator: SceneGenerator, settings: ExportSettings, on_progress: OnProgress | None = None
) -> ExtractedMesh:
    """The mesh of ``generator`` at the export's settings.

    A mesh that was optimised keeps its triangles and its texture, whatever ``export.resolution``, ``threshold``,
    ``max_faces`` and ``texture_size`` say, except for a size of 0; its levels of detail have colours at the vertices.

    Raises:
        InputError: a field is empty or full at the threshold, or not finite; or an optimised mesh should have a normal
            map.
    """
    if isinstance(generator, NeRF):
        return extract_mesh(generator, generator.radius, settings, generator.device, on_progress)
    assert isinstance(generator, TexturedMesh)
    if settings.normal_map:
        raise InputError("--normal-map, export.normal_map=true: generator=mesh has no finer surface; leave it out")
    mesh = generator.surface()
    lods = tuple(simplify_mesh(mesh, faces) for faces in settings.lods)
    texture = mesh.texture if settings.texture_size else None
    if on_progress is not None:
        on_progress("colours", 1.0)
    return ExtractedMesh(replace(mesh, texture=texture), None, None, lods=lods)
