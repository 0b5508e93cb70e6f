"""Images of a generator: previews of a run, and the results of a 2D run."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from nfsd3d.config.schema import Config
from nfsd3d.generators.base import ImageGenerator, Latents, SceneGenerator
from nfsd3d.prior.base import Prior
from nfsd3d.runs.lock import check_owned
from nfsd3d.train.build import viewing_cameras
from nfsd3d.visualize import images
from nfsd3d.visualize.image_grid import Image, square, write_png
from nfsd3d.visualize.images import to_uint8

PREVIEW_VIEWS = 4


def preview(
    config: Config, generator: SceneGenerator | ImageGenerator, prior: Prior, on_view: Callable[[], None] | None = None
) -> Image:
    """An image grid: four views with opacity and normals of a scene, or all images of a 2D run.

    ``on_view`` is called after each view of a scene.
    """
    if isinstance(generator, SceneGenerator):
        return images.preview(generator, viewing_cameras(config, PREVIEW_VIEWS, config.train.preview_size), on_view)
    return square([to_uint8(image) for image in images_of(generator, prior)])


@torch.no_grad()
def images_of(generator: ImageGenerator, prior: Prior) -> Tensor:
    """[B,3,H,W] the images in [0,1]; latents are decoded by ``prior``, one at a time to bound the memory."""
    shown = generator.show()
    if isinstance(shown, Latents):
        return torch.cat([prior.decode(latent) for latent in shown.latent.split(1)])
    return shown.image.clamp(0, 1)


def write_preview(run_dir: Path, step: int, image: Image) -> Path:
    """Writes ``previews/step-XXXXXX.png``, the preview after ``step`` finished steps; returns its path.

    Raises:
        OwnerLost: ``run_dir`` belongs to this process no more.
    """
    check_owned(run_dir)
    folder = run_dir / "previews"
    folder.mkdir(exist_ok=True)
    path = folder / f"step-{step:06d}.png"
    write_png(path, image)
    return path


def write_images(generator: ImageGenerator, prior: Prior, folder: Path) -> list[Path]:
    """Writes ``image.png``, a grid of all images, and each as ``images/NNN.png``; returns the paths."""
    images = [to_uint8(image) for image in images_of(generator, prior)]
    named = {folder / "image.png": square(images)}
    named |= {folder / "images" / f"{index:03d}.png": image for index, image in enumerate(images)}
    (folder / "images").mkdir(exist_ok=True)
    for path, image in named.items():
        write_png(path, image)
    return list(named)
