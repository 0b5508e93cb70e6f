"""Initialisation from a source: the generator takes the state of another run, of a mesh, or of an image."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import ImageOps

from nfsd3d.config.compose import load_run_config
from nfsd3d.config.schema import Config
from nfsd3d.errors import InputError
from nfsd3d.export.extract import extract_mesh
from nfsd3d.export.formats.source.mesh import read_mesh
from nfsd3d.export.isosurface import Surface
from nfsd3d.export.texture.bake import bake_vertex_colors
from nfsd3d.export.texture.unwrap import UnwrapFailed, unwrap
from nfsd3d.generators.base import ImageGenerator, SceneGenerator
from nfsd3d.generators.images import ImageBatch
from nfsd3d.generators.mesh.mesh import TexturedMesh
from nfsd3d.generators.mesh.settings import MeshSettings
from nfsd3d.generators.mesh.surface import SurfaceMesh
from nfsd3d.generators.nerf.nerf import NeRF
from nfsd3d.prior.base import Prior
from nfsd3d.runs import checkpoints
from nfsd3d.runs.source_image import open_image
from nfsd3d.settings.paths import user_path
from nfsd3d.settings.schedules import milestone_at
from nfsd3d.train.build_generator import build_generator


@torch.no_grad()
def load_source(
    config: Config,
    generator: SceneGenerator | ImageGenerator,
    prior: Prior | None = None,
    kept: Path | None = None,
) -> None:
    """Loads the state of the source run, mesh or image of ``config``, if any, into ``generator``.

    Only an image needs the ``prior``. A resumed run reads its ``kept`` copy instead, because the source may have been
    removed. An image is cropped to a
    square around its centre and resized to ``train.resolution``; all images of the batch start with it.

    Raises:
        InputError: the source cannot be read, or is of another generator.
    """
    if kept is not None:
        checkpoints.load_generator(checkpoints.read_source(kept), generator)
    elif isinstance(generator, TexturedMesh):
        _load_mesh(config, generator)
    elif config.source_run is not None:
        checkpoints.load_generator(checkpoints.newest(user_path(config.source_run)), generator)
    elif config.source_image is not None and isinstance(generator, ImageBatch):
        assert prior is not None
        size = milestone_at(config.train.resolution, 0.0)
        pixels = np.asarray(ImageOps.fit(open_image(config.source_image), (size, size)))
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float().to(prior.device) / 255
        generator.values.copy_(prior.encode(image) if generator.kind == "latent" else image)


def _load_mesh(config: Config, generator: TexturedMesh) -> None:
    """Loads the mesh that a run starts from: of a file, of another mesh's run, or extracted from a NeRF's."""
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
        generator.load_state_dict(source.state_dict())
        return
    assert isinstance(source, NeRF)
    export = replace(config.export, max_faces=settings.max_faces, texture_size=settings.texture_size, lods=[])
    extracted = extract_mesh(source, source.radius, export, config.machine.device)
    if extracted.untextured is not None:
        why = extracted.untextured.partition(":")[0]
        raise InputError(
            f"source_run={config.source_run}: {why}; raise export.unwrap_timeout, or lower generator.max_faces"
        )
    generator.replace(extracted.mesh)
    if generator.background is not None and source.background is not None:
        generator.background.load_state_dict(source.background.state_dict())


def _textured(mesh: SurfaceMesh, config: Config) -> SurfaceMesh:
    """The mesh with a texture: its own, or a new one that shows its vertex colours.

    Raises:
        InputError: it cannot be unwrapped.
    """
    if mesh.texture is not None:
        return mesh
    assert isinstance(config.generator, MeshSettings)
    size = config.generator.texture_size
    try:
        charts = unwrap(Surface(mesh.vertices, mesh.faces), size, config.export.unwrap_timeout)
    except UnwrapFailed as error:
        remedy = "give it UVs and a texture in a modelling program, or raise export.unwrap_timeout"
        raise InputError(f"source_mesh={config.source_mesh}: has no texture, and {error}: {remedy}") from error
    return replace(mesh, texture=bake_vertex_colors(mesh, charts, size))
