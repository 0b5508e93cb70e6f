"""Training of the classifier on true renders with varied backgrounds, in one pass of a one-cycle schedule."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nfsd3d.evaluate.classifier.model import AZIMUTHS, SIZE, Classifier, Prediction
from nfsd3d.shapes.world.grammar import COLORS, PATTERNS, VIEWS, Composition, view_name
from nfsd3d.shapes.world.objects import OBJECTS
from nfsd3d.shapes.world.render import render_views
from nfsd3d.shapes.world.scene import WORLD_CAMERAS
from nfsd3d.views.cameras import sample_cameras

SEED = 20_000_003
"""Different from the seeds of the prior's training images."""

_SHARD = 64


@dataclass(frozen=True)
class Truth:
    """N true renders: ``color`` [N,3,64,64] over black, ``mask`` [N,1,64,64], both in [0,1], and their labels [N]:
    indices into the lists of objects, colours, patterns and views, and the ``azimuth`` in radians.
    """

    color: Tensor
    mask: Tensor
    compositions: list[Composition]
    view: Tensor
    azimuth: Tensor

    def __len__(self) -> int:
        return self.color.shape[0]

    def over(self, backgrounds: Tensor) -> Tensor:
        """[N,3,64,64] the images over plain ``backgrounds`` [N,3]."""
        return self.color + (1 - self.mask) * backgrounds[:, :, None, None]


def random_composition(rng: torch.Generator, name: str) -> Composition:
    """A random composition of an object; the classifier, unlike the prior, is also trained on the held-out ones."""
    pattern = PATTERNS[int(torch.randint(len(PATTERNS), (1,), generator=rng))]
    first, second = torch.randperm(len(COLORS), generator=rng)[:2].tolist()
    names = list(COLORS)
    return Composition(name, pattern, names[first], names[second] if pattern != "plain" else "")


def _render_shard(task: tuple[int, int, str]) -> tuple[np.ndarray, list[Composition], list[float], list[float]]:
    seed, count, name = task
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(seed)
    compositions = [random_composition(rng, name) for _ in range(count)]
    cameras = sample_cameras(rng, count, SIZE, WORLD_CAMERAS)
    # From low ambient light to no shading: a NeRF may be rendered as plain albedo.
    ambient = 0.3 + 0.7 * float(torch.rand(1, generator=rng))
    views = render_views(compositions, cameras, torch.zeros(count, 3, SIZE, SIZE), ambient)
    pixels = (torch.cat([views.image, views.mask], dim=1) * 255).round().to(torch.uint8).numpy()
    return pixels, compositions, cameras.azimuth.tolist(), cameras.elevation.tolist()


def render_truth(
    count: int, seed: int, *, workers: int | None = None, on_images: Callable[[int], None] = lambda count: None
) -> Truth:
    """``count`` true renders (rounded up to shards of one object each), spread evenly over the objects.

    ``workers`` processes render them (default: one per core); ``on_images`` is called with the size of each shard.
    """
    names = list(OBJECTS)
    shards = math.ceil(count / (_SHARD * len(names))) * len(names)
    tasks = [(seed * 100_003 + index, _SHARD, names[index % len(names)]) for index in range(shards)]
    pixels, compositions, azimuths, elevations = [], [], [], []
    with get_context("spawn").Pool(workers or os.cpu_count()) as pool:
        for shard, named, azimuth, elevation in pool.imap(_render_shard, tasks):
            pixels.append(shard)
            compositions += named
            azimuths += azimuth
            elevations += elevation
            on_images(len(named))
    stack = torch.from_numpy(np.concatenate(pixels)).float() / 255
    views = [view_name(math.degrees(a), math.degrees(e)) for a, e in zip(azimuths, elevations, strict=True)]
    view = torch.tensor([VIEWS.index(name) for name in views])
    return Truth(stack[:, :3], stack[:, 3:], compositions, view, torch.tensor(azimuths))


def plain_backgrounds(rng: torch.Generator, compositions: list[Composition]) -> Tensor:
    """[N,3] random colours, at least 0.3 away from each composition's main colour."""
    main = torch.tensor([COLORS[composition.color] for composition in compositions])
    colors = torch.rand(main.shape, generator=rng)
    colors = colors.lerp(colors.mean(1, keepdim=True), torch.rand(len(main), 1, generator=rng))
    close = (colors - main).norm(dim=1, keepdim=True) < 0.3
    # If the drawn colour is near the main one, its opposite is far from it.
    return torch.where(close, (main + 0.5) % 1.0, colors)


def loss(prediction: Prediction, compositions: list[Composition], view: Tensor, azimuth: Tensor) -> Tensor:
    """The cross entropy of all heads; second colour, view and azimuth only where they are valid."""
    names, colors = list(OBJECTS), list(COLORS)
    target = torch.tensor([names.index(c.object) for c in compositions])
    color = torch.tensor([colors.index(c.color) for c in compositions])
    pattern = torch.tensor([PATTERNS.index(c.pattern) for c in compositions])
    total = F.nll_loss(prediction.object, target) + F.nll_loss(prediction.color, color)
    total = total + F.nll_loss(prediction.pattern, pattern)
    patterned = [i for i, c in enumerate(compositions) if c.second]
    second = torch.tensor([colors.index(compositions[i].second) for i in patterned])
    total = total + F.nll_loss(prediction.second[patterned], second)
    front = torch.tensor([OBJECTS[c.object].has_front for c in compositions])
    known = front | (view == VIEWS.index("overhead"))
    total = total + 0.5 * F.nll_loss(prediction.view[known], view[known])
    exact = azimuth[front] / (2 * math.pi) * AZIMUTHS
    lower = exact.floor().long()
    share = exact - lower
    bins = prediction.azimuth[front]
    below, above = (bins.gather(1, (lower + i)[:, None] % AZIMUTHS)[:, 0] for i in (0, 1))
    return total - 0.5 * ((1 - share) * below + share * above).mean()


def augment(rng: torch.Generator, truth: Truth) -> Tensor:
    """[N,3,64,64] augmented renders: random backgrounds, small shifts and scalings, varied exposure and resolution."""
    count = len(truth)
    first, second = (plain_backgrounds(rng, truth.compositions)[:, :, None, None] for _ in range(2))
    ramp = torch.linspace(0, 1, SIZE)[None, None, :, None] * torch.randint(2, (count, 1, 1, 1), generator=rng)
    scale = 0.85 + 0.3 * torch.rand(count, generator=rng)
    shift = (torch.rand(count, 2, generator=rng) - 0.5) * 0.2
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, [count, 1, SIZE, SIZE], align_corners=False)
    seen = F.grid_sample(torch.cat([truth.color, truth.mask], dim=1), grid, align_corners=False)
    image = seen[:, :3] + (1 - seen[:, 3:]) * first.lerp(second, ramp)
    exposure = 0.85 + 0.3 * torch.rand(count, 1, 1, 1, generator=rng)
    image = (image * exposure).clamp(0, 1)
    # Half of them at a lower resolution, because distilled scenes are softer than true renders.
    half, coarse = count // 2, int(torch.randint(SIZE // 2, SIZE, (), generator=rng))
    small = F.interpolate(image[:half], size=(coarse, coarse), mode="bilinear", antialias=True, align_corners=False)
    soft = F.interpolate(small, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    return torch.cat([soft, image[half:]])


def _part(truth: Truth, index: Tensor) -> Truth:
    compositions = [truth.compositions[i] for i in index.tolist()]
    return Truth(truth.color[index], truth.mask[index], compositions, truth.view[index], truth.azimuth[index])


def train_classifier(
    truth: Truth, steps: int, batch: int = 64, learning_rate: float = 3e-3, on_step: Callable[[float], None] = print
) -> Classifier:
    """A classifier trained on ``truth``; ``on_step`` is called with the loss after every step."""
    torch.manual_seed(SEED)
    rng = torch.Generator().manual_seed(SEED)
    classifier = Classifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.15)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(truth), generator=rng)
        part, order = _part(truth, order[:batch]), order[batch:]
        images = augment(rng, part)
        with torch.autocast("cpu", torch.bfloat16):
            prediction = classifier(images)
        value = loss(prediction, part.compositions, part.view, part.azimuth)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        on_step(value.item())
    return classifier.eval().requires_grad_(False)


def save_classifier(classifier: Classifier, path: Path) -> None:
    """Writes the weights in half precision."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half().contiguous() for name, value in classifier.state_dict().items()}, path)
