"""The mesh that a run of ``generator=mesh`` starts from: of a file or another mesh's run, or extracted from a field."""

import sys
from dataclasses import replace

import torch

from nfsd3d.config.compose import load_run_config
from nfsd3d.config.schema import Config
from nfsd3d.errors import InputError
from nfsd3d.export.extract import extract_mesh
from nfsd3d.export.formats.source.mesh import read_mesh
from nfsd3d.export.isosurface import Surface
from nfsd3d.export.texture.bake import bake_vertex_colors
from nfsd3d.export.texture.unwrap import UnwrapFailed, unwrap
from nfsd3d.generators.mesh.color_change import places_once
from nfsd3d.generators.mesh.mesh import TexturedMesh
from nfsd3d.generators.mesh.settings import MeshSettings
from nfsd3d.generators.mesh.surface import SurfaceMesh
from nfsd3d.generators.nerf.nerf import NeRF
from nfsd3d.runs import checkpoints
from nfsd3d.settings.paths import user_path
from nfsd3d.train.build_generator import build_generator

PLACES = 512
"""Texels per side at whose centres a texture's places are compared."""


def load_mesh(config: Config, generator: TexturedMesh) -> None:
    """Loads the mesh of the source that ``config`` names into ``generator``.

    Raises:
        InputError: the source cannot be read, or has no texture and cannot be unwrapped.
    """
    settings = config.generator
    assert isinstance(settings, MeshSettings)
    if config.source_mesh is not None:
        given = read_mesh(user_path(config.source_mesh), settings.radius, settings.source_up)
        for note in given.notes:
            print(f"source_mesh={config.source_mesh}: {note}", file=sys.stderr)
        generator.replace(_textured(given.mesh, config))
        return
    assert config.source_run is not None
    folder = user_path(config.source_run)
    here = {name: config.to_dict()[name] for name in ("machine", "backend")}
    source = build_generator(load_run_config(folder).replace(**here))
    checkpoints.load_generator(checkpoints.newest(folder), source)
    if isinstance(source, TexturedMesh):
        generator.replace(source.surface())
        _take_background(generator, source)
        return
    assert isinstance(source, NeRF)
    export = replace(
        config.export, max_faces=settings.max_faces, texture_size=settings.texture_size, lods=[], normal_map=False
    )
    extracted = extract_mesh(source, source.radius, export, config.machine.device)
    if extracted.untextured is not None:
        why = extracted.untextured.partition(":")[0]
        raise InputError(
            f"source_run={config.source_run}: {why}; raise export.unwrap_timeout, or lower generator.max_faces"
        )
    generator.replace(extracted.mesh)
    _take_background(generator, source)


def _take_background(generator: TexturedMesh, source: TexturedMesh | NeRF) -> None:
    if generator.background is not None and source.background is not None:
        generator.background.load_state_dict(source.background.state_dict())


def _textured(mesh: SurfaceMesh, config: Config) -> SurfaceMesh:
    """The mesh with a texture: its own, or a new one that shows its vertex colours.

    Raises:
        InputError: it cannot be unwrapped, or its texture cannot show a change in space.
    """
    assert isinstance(config.generator, MeshSettings)
    cells = config.generator.color_cells
    if mesh.texture is not None:
        uv, faces = torch.from_numpy(mesh.texture.uv), torch.from_numpy(mesh.texture.faces).long()
        if cells and not places_once(uv, faces, PLACES):
            raise InputError(
                f"generator.color_cells={cells}: source_mesh={config.source_mesh} shows parts of its texture in "
                "several places, which cannot change apart; set generator.color_cells=0"
            )
        return mesh
    size = config.generator.texture_size
    try:
        charts = unwrap(Surface(mesh.vertices, mesh.faces), size, config.export.unwrap_timeout)
    except UnwrapFailed as error:
        remedy = "give it UVs and a texture in a modelling program, or raise export.unwrap_timeout"
        raise InputError(f"source_mesh={config.source_mesh}: has no texture, and {error}: {remedy}") from error
    return replace(mesh, texture=bake_vertex_colors(mesh, charts, size))
