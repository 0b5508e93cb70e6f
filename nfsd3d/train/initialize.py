"""Initialisation from a source: the generator takes the state of another run, of a mesh, or of an image."""

from pathlib import Path

import numpy as np
import torch
from PIL import ImageOps

from nfsd3d.config.schema import Config
from nfsd3d.generators.base import ImageGenerator, SceneGenerator
from nfsd3d.generators.images import ImageBatch
from nfsd3d.generators.mesh.mesh import TexturedMesh
from nfsd3d.prior.base import Prior
from nfsd3d.runs import checkpoints
from nfsd3d.runs.source_image import open_image
from nfsd3d.settings.paths import user_path
from nfsd3d.settings.schedules import milestone_at


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
        from nfsd3d.train.initial_mesh import load_mesh  # what extracts meshes takes a third of a second to import

        load_mesh(config, generator)
    elif config.source_run is not None:
        checkpoints.load_generator(checkpoints.newest(user_path(config.source_run)), generator)
    elif config.source_image is not None and isinstance(generator, ImageBatch):
        assert prior is not None
        size = milestone_at(config.train.resolution, 0.0)
        pixels = np.asarray(ImageOps.fit(open_image(config.source_image), (size, size)))
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float().to(prior.device) / 255
        generator.values.copy_(prior.encode(image) if generator.kind == "latent" else image)
