"""The embedded prior's training images, rendered to shards of arrays and captions."""

import json
import math
import os
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from nfsd3d.shapes.training.common import TeacherSettings, progress_bar
from nfsd3d.shapes.world.objects import OBJECTS
from nfsd3d.shapes.world.scene import image_caption, sample_images

SHARD_IMAGES = 256
CAPTIONS_PER_IMAGE = 6


def _render_shard(task: tuple[Path, int, int, int]) -> None:
    path, index, size, seed = task
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(seed * 1_000_003 + index)
    images, captions, objects = [], [], []
    names = list(OBJECTS)
    per_object = SHARD_IMAGES // len(names)
    for name in names:
        for sample in sample_images(rng, name, per_object, size):
            images.append((sample.image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())
            draw = (sample.composition, sample.views, sample.background, sample.words)
            captions.append([image_caption(rng, *draw) for _ in range(CAPTIONS_PER_IMAGE)])
            objects.append([name, bool(sample.words)])
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, images=np.stack(images), captions=np.array(json.dumps([captions, objects])))
    os.replace(temporary, path)


def render_dataset(folder: Path, settings: TeacherSettings, workers: int | None = None) -> None:
    """Renders the training images to ``folder`` (shards that exist are kept), with a progress bar."""
    folder.mkdir(parents=True, exist_ok=True)
    count = math.ceil(settings.images / SHARD_IMAGES)
    paths = [folder / f"shard-{index:05d}.npz" for index in range(count)]
    missing = [(path, index, settings.size, settings.seed) for index, path in enumerate(paths) if not path.exists()]
    if not missing:
        return
    with progress_bar() as progress, get_context("spawn").Pool(workers or os.cpu_count()) as pool:
        task = progress.add_task("images", total=count, completed=count - len(missing), note="")
        for _ in pool.imap_unordered(_render_shard, missing):
            progress.advance(task)


@dataclass(frozen=True)
class ImageDataset:
    """The rendered images: ``images`` uint8 [N,S,S,3], ``captions`` (several each), ``degraded`` bool [N]."""

    images: np.ndarray
    captions: list[list[str]]
    degraded: np.ndarray


def load_dataset(folder: Path, settings: TeacherSettings) -> ImageDataset:
    """Reads the shards that ``render_dataset`` wrote."""
    images: list[np.ndarray] = []
    captions: list[list[str]] = []
    degraded: list[bool] = []
    for index in range(math.ceil(settings.images / SHARD_IMAGES)):
        with np.load(folder / f"shard-{index:05d}.npz") as shard:
            images.append(shard["images"])
            texts, objects = json.loads(str(shard["captions"]))
        captions.extend(texts)
        degraded.extend(bad for _, bad in objects)
    return ImageDataset(np.concatenate(images), captions, np.array(degraded))
