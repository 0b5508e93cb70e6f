"""Random training images of the world: compositions, cameras, light, backgrounds, degradations and captions."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nfsd3d.settings.cameras import CameraRanges
from nfsd3d.shapes.world.degrade import NEGATIVE_WORDS, degrade, sample_degradations
from nfsd3d.shapes.world.grammar import COLORS, QUALITY, Composition, sample_caption, sample_composition, view_phrases
from nfsd3d.shapes.world.render import render_views
from nfsd3d.views.cameras import Cameras, sample_cameras

WORLD_CAMERAS = CameraRanges(
    distance=(2.2, 2.8),
    fovy_deg=(40.0, 50.0),
    elevation_deg=(-10.0, 60.0),
    azimuth_deg=(-180.0, 180.0),
    overhead_probability=0.12,
    overhead_deg=(60.0, 88.0),
    target_jitter=0.03,
    light_jitter_deg=60.0,
    light_distance=(3.0, 5.0),
)
BACKGROUNDS: dict[str, tuple[float, float, float]] = {**COLORS, "gray": (0.5, 0.5, 0.5)}
DEGRADED_SHARE = 0.15
QUALITY_SHARE = 0.15


@dataclass(frozen=True)
class TrainingImage:
    """One training image: ``image`` [3,H,W] in [0,1] and the possible content of its captions.

    ``views`` are true phrases of the camera, ``words`` the degradations applied (captions must name them),
    ``background`` the named background or "".
    """

    image: Tensor
    composition: Composition
    views: tuple[str, ...]
    background: str
    words: tuple[str, ...]


def random_backgrounds(
    rng: torch.Generator, compositions: list[Composition], cameras: Cameras
) -> tuple[Tensor, list[str]]:
    """[B,3,H,W] backgrounds that differ from each object's main colour, and their names ("" where unnamed).

    Kinds: a named colour, any colour, a vertical gradient, a floor under a wall (its horizon follows the camera).
    """
    images, names = [], []
    for index, composition in enumerate(compositions):
        main = torch.tensor(COLORS[composition.color])
        kind = float(torch.rand(1, generator=rng))
        name = ""
        if kind < 0.25:
            # White and gray stand behind half of the named ones, as in product photographs.
            pool = list(BACKGROUNDS) + ["white", "gray"] * 4
            while (main - torch.tensor(BACKGROUNDS[name := _choice(rng, pool)])).norm() < 0.3:
                pass
            image = _solid(torch.tensor(BACKGROUNDS[name]), cameras.height, cameras.width)
        elif kind < 0.55:
            image = _solid(_far_color(rng, main), cameras.height, cameras.width)
        else:
            top, bottom = _far_color(rng, main), _far_color(rng, main)
            bottom = top.lerp(bottom, 0.3 + 0.5 * float(torch.rand(1, generator=rng)))
            image = (
                _gradient(top, bottom, cameras.height, cameras.width)
                if kind < 0.8
                else _floor(top, bottom, cameras, index)
            )
        images.append(image)
        names.append(f"a {name} background" if name else "")
    return torch.stack(images), names


def _choice(rng: torch.Generator, options: list[str]) -> str:
    return options[int(torch.randint(len(options), (1,), generator=rng))]


def _far_color(rng: torch.Generator, main: Tensor) -> Tensor:
    """A random colour, often muted, at least 0.3 away from ``main``."""
    while True:
        color = torch.rand(3, generator=rng)
        color = color.lerp(color.mean().expand(3), float(torch.rand(1, generator=rng)))
        if (color - main).norm() > 0.3:
            return color


def _solid(color: Tensor, height: int, width: int) -> Tensor:
    return color[:, None, None].expand(3, height, width).clone()


def _gradient(top: Tensor, bottom: Tensor, height: int, width: int) -> Tensor:
    ramp = torch.linspace(0, 1, height)[None, :, None]
    return (top[:, None, None] * (1 - ramp) + bottom[:, None, None] * ramp).expand(3, height, width).clone()


def _floor(wall: Tensor, floor: Tensor, cameras: Cameras, index: int) -> Tensor:
    """A wall that meets a floor; the soft edge stands where the camera sees the horizon, 20 degrees below it."""
    elevation = float(cameras.elevation[index])
    half = math.tan(float(cameras.fovy[index]) / 2)
    angle = max(-1.3, min(1.3, elevation - math.radians(20)))
    edge = math.tan(angle) / half  # in half image heights above the centre
    rows = 1 - (torch.arange(cameras.height) + 0.5) * 2 / cameras.height
    blend = torch.sigmoid((edge - rows) * 8)[None, :, None]
    image = wall[:, None, None] * (1 - blend) + floor[:, None, None] * blend
    return image.expand(3, cameras.height, cameras.width).clone()


def sample_images(rng: torch.Generator, object_name: str, count: int, size: int) -> list[TrainingImage]:
    """``count`` random training images of one object (rendered together), ``size`` x ``size`` pixels."""
    compositions = [sample_composition(rng, object_name) for _ in range(count)]
    cameras = sample_cameras(rng, count, size, WORLD_CAMERAS)
    backgrounds, names = random_backgrounds(rng, compositions, cameras)
    ambient = 0.35 + 0.3 * float(torch.rand(1, generator=rng))
    images = render_views(compositions, cameras, backgrounds, ambient).image
    samples = []
    for index, composition in enumerate(compositions):
        words = sample_degradations(rng) if torch.rand(1, generator=rng) < DEGRADED_SHARE else ()
        azimuth, elevation = math.degrees(cameras.azimuth[index]), math.degrees(cameras.elevation[index])
        samples.append(
            TrainingImage(
                degrade(images[index], words, rng),
                composition,
                view_phrases(azimuth, elevation),
                names[index],
                words,
            )
        )
    return samples


def image_caption(
    rng: torch.Generator, composition: Composition, views: tuple[str, ...], background: str, words: tuple[str, ...]
) -> str:
    """A random caption of an image; degraded images have degradation words, some clean ones quality words.

    A fifth of the degraded images are captioned by their degradations alone, and a tenth by the paper's whole
    negative prompt, because the negative prompt is used in that form.
    """
    if words:
        draw = float(torch.rand(1, generator=rng))
        if draw < 0.2:
            return ", ".join(words)
        if draw < 0.3 and set(words) <= set(NEGATIVE_WORDS):
            return ", ".join(NEGATIVE_WORDS)
        return sample_caption(rng, composition, views, background, words)
    praise: tuple[str, ...] = ()
    if torch.rand(1, generator=rng) < QUALITY_SHARE:
        count = int(torch.randint(1, 4, (1,), generator=rng))
        praise = tuple(QUALITY[int(i)] for i in torch.randperm(len(QUALITY), generator=rng)[:count])
    named = background if torch.rand(1, generator=rng) < 0.5 else ""
    return sample_caption(rng, composition, views, named, praise)
