"""Images with known content, and pairs of an in-domain and an out-of-domain image of the same content.

Captioned distortions are those that captions of the embedded prior's training images name, so its results on them hold
partly by construction. The others (floaters, over-saturation, half-trained scenes) are not in its training data and
occur in distillation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from nfsd3d.errors import InputError
from nfsd3d.evaluate.ground_truth import composition_of
from nfsd3d.evaluate.sharpness import luminance
from nfsd3d.generators.base import RenderOptions
from nfsd3d.runs.source_image import open_image
from nfsd3d.shapes.world.degrade import NEGATIVE_WORDS, degrade
from nfsd3d.shapes.world.grammar import COLORS, Composition, sample_composition
from nfsd3d.shapes.world.objects import OBJECTS
from nfsd3d.shapes.world.render import render_views
from nfsd3d.shapes.world.scene import WORLD_CAMERAS, random_backgrounds
from nfsd3d.views.cameras import Cameras, orbit, sample_cameras

if TYPE_CHECKING:
    from nfsd3d.api import Run

WORLD_SIZE = 64
"""Pixels per side of a true image; the degradations are designed for this size."""
ANY_SIZE = ("unrealistic", "low contrast", "dull", "dark", "gloomy")
"""Words of the negative prompt with degradations that do not depend on the image size."""
VISIBLE = 0.1
"""A pixel is distorted when its channels change by more than this on average."""


@dataclass(frozen=True)
class Subjects:
    """N in-domain ``images`` [N,3,S,S] in [0,1] and their ``prompts``.

    ``targets`` are prompts of other content, one for each. In the world of shapes (``compositions`` is not empty) the
    targets are the same object in other colours, ``target_images`` [N,3,S,S] are its true images from the same
    cameras, and ``masks`` [N,1,S,S] the object's coverage, in [0,1].
    """

    images: Tensor
    prompts: list[str]
    targets: list[str]
    masks: Tensor | None = None
    target_images: Tensor | None = None
    compositions: tuple[Composition, ...] = ()
    target_compositions: tuple[Composition, ...] = ()


@dataclass(frozen=True)
class Pairs:
    """N images of the same content, ``clean`` and ``distorted`` [N,3,S,S] in [0,1].

    ``masks`` [N,1,S,S] in [0,1] cover the distorted regions. ``prompts`` describe the content, ``cameras`` the views.
    """

    clean: Tensor
    distorted: Tensor
    masks: Tensor
    prompts: list[str]
    cameras: Cameras


def world_subjects(count: int, rng: torch.Generator) -> Subjects:
    """``count`` true images of the world of shapes, as in the prior's training, its objects in turn."""
    names = list(OBJECTS)
    each = [count // len(names) + (index < count % len(names)) for index in range(len(names))]
    images, masks, targets, shown, wanted = [], [], [], [], []
    for name, number in zip(names, each, strict=True):
        if number == 0:
            continue
        compositions = [sample_composition(rng, name) for _ in range(number)]
        others = [_recoloured(rng, composition) for composition in compositions]
        cameras = sample_cameras(rng, number, WORLD_SIZE, WORLD_CAMERAS)
        backgrounds, _ = random_backgrounds(rng, compositions, cameras)
        views = render_views(compositions, cameras, backgrounds)
        images.append(views.image)
        masks.append(views.mask)
        targets.append(render_views(others, cameras, backgrounds).image)
        shown += compositions
        wanted += others
    return Subjects(
        torch.cat(images),
        [composition.prompt for composition in shown],
        [composition.prompt for composition in wanted],
        torch.cat(masks),
        torch.cat(targets),
        tuple(shown),
        tuple(wanted),
    )


def _recoloured(rng: torch.Generator, composition: Composition) -> Composition:
    """The same object and pattern in entirely different colours."""
    free = [name for name in COLORS if name not in (composition.color, composition.second)]
    first, second = torch.randperm(len(free), generator=rng)[:2].tolist()
    other = free[second] if composition.second else ""
    return Composition(composition.object, composition.pattern, free[first], other)


def file_subjects(paths: Sequence[Path], prompt: str, target: str, count: int, size: int) -> Subjects:
    """``count`` images, the files in turn, cropped to a square of ``size`` pixels; ``prompt`` describes them.

    Raises:
        InputError: a file that is no image.
    """
    from PIL import ImageOps

    loaded = []
    for path in paths:
        try:
            square = ImageOps.fit(open_image(str(path)), (size, size))
        except InputError as error:
            raise InputError(str(error).replace("source_image=", "--image ", 1)) from error
        pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).reshape(size, size, 3)
        loaded.append(pixels.permute(2, 0, 1).float() / 255)
    images = torch.stack([loaded[index % len(loaded)] for index in range(count)])
    return Subjects(images, [prompt] * count, [target] * count)


def degraded_pairs(subjects: Subjects, rng: torch.Generator, *, patch: bool) -> Pairs:
    """Each image after the degradation of one word of the paper's negative prompt.

    With ``patch`` only in a soft disc of a quarter of the image's size, which is the exact mask. Otherwise everywhere,
    and the mask covers visible changes.
    """
    words = NEGATIVE_WORDS if subjects.images.shape[-1] == WORLD_SIZE else ANY_SIZE
    choice = torch.randint(len(words), (len(subjects.images),), generator=rng).tolist()
    degraded = torch.stack([degrade(image, (words[i],), rng) for image, i in zip(subjects.images, choice, strict=True)])
    if not patch:
        return _pairs(subjects, degraded, visible_change(subjects.images, degraded))
    masks = torch.stack([_disc(rng, subjects.images.shape[-1], 0.25, 0.25, softness=0.03) for _ in choice])
    return _pairs(subjects, subjects.images.lerp(degraded, masks), masks)


def floater_pairs(subjects: Subjects, rng: torch.Generator) -> Pairs:
    """Two to five blobs of random colours in front of each image (floaters); the mask is their coverage."""
    images, masks = [], []
    for image in subjects.images:
        cover = torch.zeros_like(image[:1])
        for _ in range(int(torch.randint(2, 6, (1,), generator=rng))):
            opacity = 0.6 + 0.35 * float(torch.rand(1, generator=rng))
            blob = opacity * _disc(rng, image.shape[-1], 0.03, 0.08, softness=0.02)
            image = image.lerp(torch.rand(3, 1, 1, generator=rng).expand_as(image), blob)
            cover = torch.maximum(cover, blob)
        images.append(image)
        masks.append((cover > 0.3).float())
    return _pairs(subjects, torch.stack(images), torch.stack(masks))


def saturated_pairs(subjects: Subjects, rng: torch.Generator) -> Pairs:
    """Colours two to three times as far from gray, at 1.3 times the contrast: the effect of a large guidance scale.

    The mask covers visible changes.
    """
    images = subjects.images
    gray = luminance(images)
    factor = 2 + torch.rand(len(images), 1, 1, 1, generator=rng)
    saturated = (0.5 + 1.3 * (gray + factor * (images - gray) - 0.5)).clamp(0, 1)
    return _pairs(subjects, saturated, visible_change(images, saturated))


def recoloured_pairs(subjects: Subjects) -> Pairs:
    """The control: both images are in-domain, and one shows the object in other colours."""
    assert subjects.target_images is not None
    return _pairs(subjects, subjects.target_images, visible_change(subjects.images, subjects.target_images))


def half_trained_pairs(runs: Sequence[Run], count: int, rng: torch.Generator) -> Pairs:
    """Views of half-trained scenes, and true ones from the same cameras over the same plain backgrounds.

    ``count`` views in all, from random training cameras, spread over the runs; the true views are unlit. The mask
    covers visible differences.

    Raises:
        InputError: the prompt of a run is not one of the world of shapes, or the run made no scene.
    """
    clean, distorted, prompts, cameras = [], [], [], []
    for index, run in enumerate(runs):
        composition = composition_of(run.config.prompt)
        number = count // len(runs) + (index < count % len(runs))
        if number == 0:
            continue
        views = sample_cameras(rng, number, WORLD_SIZE, run.config.cameras)
        colors = 0.3 + 0.6 * torch.rand(number, 3, generator=rng)
        device = run.generator.device
        rendering = run.generator.render_in_chunks(views.to(device), RenderOptions(colors.to(device)))
        plain = colors[:, :, None, None].expand(-1, -1, WORLD_SIZE, WORLD_SIZE)
        clean.append(render_views([composition] * number, views, plain, ambient=0.6).image)
        distorted.append(rendering.image.clamp(0, 1).cpu())
        prompts += [composition.prompt] * number
        cameras.append(views)
    before, after = torch.cat(clean), torch.cat(distorted)
    return Pairs(before, after, visible_change(before, after), prompts, _joined(cameras))


def visible_change(before: Tensor, after: Tensor) -> Tensor:
    """[N,1,S,S] 1 where two images [N,3,S,S] visibly differ, else 0."""
    return ((after - before).abs().mean(1, keepdim=True) > VISIBLE).float()


def on_latents(masks: Tensor, height: int, width: int, share: float = 0.25) -> Tensor:
    """[N,height,width] the latent pixels of which at least ``share`` is covered by masks [N,1,S,S]; bool."""
    return F.adaptive_avg_pool2d(masks, (height, width))[:, 0] >= share


def _pairs(subjects: Subjects, distorted: Tensor, masks: Tensor) -> Pairs:
    size = subjects.images.shape[-1]
    return Pairs(subjects.images, distorted, masks, subjects.prompts, orbit(len(distorted), size))


def _disc(rng: torch.Generator, size: int, smallest: float, largest: float, softness: float) -> Tensor:
    """[1,size,size] 1 in a disc at a random place, falling softly to 0; radii as fractions of the image's side."""
    x, y = (0.15 + 0.7 * torch.rand(2, generator=rng)).tolist()
    radius = smallest + (largest - smallest) * float(torch.rand(1, generator=rng))
    line = (torch.arange(size) + 0.5) / size
    distance = torch.hypot(line[None, :] - x, line[:, None] - y)
    return ((radius - distance) / softness + 0.5).clamp(0, 1)[None]


def _joined(cameras: Sequence[Cameras]) -> Cameras:
    def joined(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in cameras])

    azimuth, elevation, distance, fovy, light, target = map(joined, (f.name for f in fields(Cameras)[:6]))
    return Cameras(azimuth, elevation, distance, fovy, light, target, WORLD_SIZE, WORLD_SIZE)
