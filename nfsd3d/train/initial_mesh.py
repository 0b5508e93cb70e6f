"""The mesh that a run of ``generator=mesh`` starts from: of a file or another mesh's run, or extracted from a field."""

import sys
from dataclasses import replace

import torch
import torch.nn.functional as F

from nfsd3d.config.compose import load_run_config
from nfsd3d.config.hardware import with_hardware
from nfsd3d.config.schema import Config
from nfsd3d.errors import InputError
from nfsd3d.export.extract import extract_mesh
from nfsd3d.export.formats.source.mesh import read_mesh
from nfsd3d.export.isosurface import Surface
from nfsd3d.export.texture.bake import bake_vertex_colors, texel_side
from nfsd3d.export.texture.unwrap import Charts, UnwrapFailed, unwrap
from nfsd3d.generators.mesh.color_change import places_once
from nfsd3d.generators.mesh.mesh import TexturedMesh
from nfsd3d.generators.mesh.settings import MeshSettings
from nfsd3d.generators.mesh.surface import SurfaceMesh
from nfsd3d.generators.nerf.nerf import NeRF
from nfsd3d.runs import checkpoints
from nfsd3d.settings.paths import user_path
from nfsd3d.train.build_generator import build_generator


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
        generator.replace(_changeable(_textured(given.mesh, config), config, f"source_mesh={config.source_mesh}"))
        return
    assert config.source_run is not None
    folder = user_path(config.source_run)
    here = config.to_dict()
    source = build_generator(with_hardware(load_run_config(folder), here["machine"], here["backend"]))
    checkpoints.load_generator(checkpoints.newest(folder), source)
    if isinstance(source, TexturedMesh):
        generator.replace(_changeable(source.surface(), config, f"source_run={config.source_run}"))
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
        InputError: it cannot be unwrapped.
    """
    assert isinstance(config.generator, MeshSettings)
    if mesh.texture is not None:
        return mesh
    size = config.generator.texture_size
    try:
        charts = unwrap(Surface(mesh.vertices, mesh.faces), size, config.export.unwrap_timeout)
    except UnwrapFailed as error:
        remedy = "give it UVs and a texture in a modelling program, or raise export.unwrap_timeout"
        raise InputError(f"source_mesh={config.source_mesh}: has no texture, and {error}: {remedy}") from error
    return replace(mesh, texture=bake_vertex_colors(mesh, charts, size))


def _changeable(mesh: SurfaceMesh, config: Config, source: str) -> SurfaceMesh:
    """The mesh with a texture that holds changes of colour in space, enlarged if its texels are larger than a cell.

    Raises:
        InputError: a part of the texture is shown in several places.
    """
    settings = config.generator
    assert isinstance(settings, MeshSettings) and mesh.texture is not None
    cells, texture = settings.color_cells, mesh.texture
    if not cells:
        return mesh
    corners = torch.from_numpy(mesh.vertices)[torch.from_numpy(mesh.faces).long()].double()
    areas = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=-1) / 2
    uv, faces = torch.from_numpy(texture.uv), torch.from_numpy(texture.faces).long()
    if not places_once(uv, faces, areas):
        raise InputError(
            f"generator.color_cells={cells}: {source} shows parts of its texture in several places, which cannot "
            "change apart; set generator.color_cells=0"
        )
    flat = Surface(mesh.vertices, mesh.faces)
    texel = texel_side(flat, Charts(texture.uv, texture.source, texture.faces), texture.size)
    if texel <= settings.radius / cells or texture.size >= settings.texture_size:  # half a cell
        return mesh
    print(
        f"{source}: its texture of {texture.size}^2 texels, which are larger than half a cell of "
        f"generator.color_cells={cells}, becomes one of {settings.texture_size}^2 (generator.texture_size)",
        file=sys.stderr,
    )
    levels = torch.from_numpy(texture.image).permute(2, 0, 1)[None].float()
    larger = F.interpolate(levels, size=(settings.texture_size,) * 2, mode="bilinear", align_corners=False)
    image = larger[0].permute(1, 2, 0).round().to(torch.uint8).numpy()
    return replace(mesh, texture=replace(texture, image=image))
