"""Image grids of the score decomposition: directions as heat maps and colours, and decoded steps.

Heat maps are the length over channels of a direction, white at its largest; coloured maps are the first three channels
of a latent around gray. Improved images are steps against the direction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from nfsd3d.decompose.figures import ETAS
from nfsd3d.decompose.image_pairs import Pairs, Subjects
from nfsd3d.decompose.observation import Observation, PairObservation
from nfsd3d.evaluate.statistics import size
from nfsd3d.prior.base import Prior
from nfsd3d.visualize.images import Image, grid, to_uint8

TILE = 128
"""Pixels per side of an image in a grid."""
LABEL = 16
SHOWN = 6
"""Rows of an image grid for each kind of image."""


@dataclass(frozen=True)
class ImageGrid:
    """Rows of images [3,H,W] in [0,1] under the names of their columns, at timestep ``t``."""

    t: int
    columns: Sequence[str]
    rows: Sequence[Sequence[Tensor]]

    def image(self) -> Image:
        """The image grid, with the names above."""
        from PIL import Image as PIL
        from PIL import ImageDraw

        tiles = [[to_uint8(_tile(image)) for image in row] for row in self.rows]
        head = PIL.new("RGB", (TILE * len(self.columns), LABEL), "white")
        draw = ImageDraw.Draw(head)
        for index, name in enumerate(self.columns):
            draw.text((TILE * index + 3, 2), name, fill="black")
        return np.concatenate([np.asarray(head), grid(tiles)])


def middle(timesteps: Sequence[int], training_steps: int) -> int:
    """The index of the timestep in image grids, the one nearest to 3/10 of the range."""
    return min(range(len(timesteps)), key=lambda i: abs(timesteps[i] - 0.3 * training_steps))


def condition_grid(prior: Prior, subjects: Subjects, seen: Observation) -> ImageGrid:
    """δ_C and the sweep x − η(σ/α)δ_C."""
    i = middle(seen.timesteps, seen.schedule.training_steps)
    rows = []
    for n in _spread(len(seen.z)):
        delta_c = seen.delta_c[i, 0, n]
        swept = [seen.z[n] - eta * seen.step[i, 0, 0] * delta_c for eta in ETAS]
        noise = colours(seen.noise[0, n])
        rows.append([subjects.images[n], noise, heat(delta_c), colours(delta_c), *(_decoded(prior, z) for z in swept)])
    return ImageGrid(
        seen.timesteps[i], ["x", "noise", "|delta_C|", "delta_C", *(f"x - {eta:g} delta_C" for eta in ETAS)], rows
    )


def domain_grid(prior: Prior, families: Mapping[str, tuple[Pairs, PairObservation]]) -> ImageGrid:
    """Two pairs of each family: δ_N, δ_D, and the distorted image after the step along −δ_D."""
    first = next(iter(families.values()))[1].clean
    i = middle(first.timesteps, first.schedule.training_steps)
    rows = []
    for pairs, seen in families.values():
        for n in _spread(len(pairs.clean), 2):
            delta_n, delta_d = seen.delta_n[i, 0, n], seen.delta_d[i, 0, n]
            better = seen.distorted.z[n] - seen.distorted.step[i, 0, 0] * delta_d
            mask = seen.mask[n].float().expand(3, -1, -1)
            shown = [pairs.clean[n], pairs.distorted[n], mask, colours(delta_n), heat(delta_d)]
            rows.append([*shown, _decoded(prior, better)])
    return ImageGrid(
        first.timesteps[i], ["x_ID", "x_OOD", "distortion", "delta_N", "|delta_D|", "x_OOD - delta_D"], rows
    )


def negative_grid(prior: Prior, families: Mapping[str, tuple[Pairs, PairObservation]]) -> ImageGrid:
    """Two pairs of each family: δ_D, its two approximations by a prompt, and steps along them."""
    first = next(iter(families.values()))[1].clean
    i = middle(first.timesteps, first.schedule.training_steps)
    rows = []
    for pairs, seen in families.values():
        for n in _spread(len(pairs.clean), 2):
            eps = {name: value[i, 0, n] for name, value in seen.distorted.eps.items()}
            by_neg, by_random = eps["uncond"] - eps["neg"], eps["uncond"] - eps["random"]
            steps = [seen.distorted.z[n] - eta * seen.distorted.step[i, 0, 0] * by_neg for eta in (1, 3)]
            heats = [heat(seen.delta_d[i, 0, n]), heat(by_neg), heat(by_random)]
            rows.append([pairs.clean[n], pairs.distorted[n], *heats, *(_decoded(prior, z) for z in steps)])
    names = [
        "x_ID",
        "x_OOD",
        "|delta_D|",
        "|e() - e(neg)|",
        "|e() - e(random)|",
        "x_OOD - 1 (...neg)",
        "x_OOD - 3 (...)",
    ]
    return ImageGrid(first.timesteps[i], names, rows)


def residual_grid(groups: Mapping[str, tuple[Tensor, Observation]]) -> ImageGrid:
    """Images of each group: two draws of the residual, its mean, and δ_C, at one scale."""
    first = next(iter(groups.values()))[1]
    i = middle(first.timesteps, first.schedule.training_steps)
    rows = []
    for images, seen in groups.values():
        for n in _spread(len(images), SHOWN // 2):
            residual = seen.residual[i, :, n]
            scale = float(size(residual[0]))
            maps = [*residual[:2], residual.mean(0), seen.delta_c[i, 0, n]]
            rows.append([images[n], colours(seen.noise[0, n]), *(colours(value, scale) for value in maps)])
    return ImageGrid(first.timesteps[i], ["x", "noise", "residual", "another noise", "mean of noises", "delta_C"], rows)


def dds_grid(prior: Prior, source: Observation, edited: Observation) -> ImageGrid:
    """Source and edited image, their residuals and the difference, and the direction of the edit."""
    i = middle(source.timesteps, source.schedule.training_steps)
    rows = []
    for n in _spread(len(source.z)):
        residuals = edited.residual[i, 0, n], source.residual[i, 0, n]
        scale = float(size(residuals[0]))
        maps = [*residuals, residuals[0] - residuals[1], (edited.delta_c - source.delta_c)[i, 0, n]]
        shown = [_decoded(prior, seen.z[n]) for seen in (source, edited)]
        rows.append([*shown, *(colours(value, scale) for value in maps)])
    columns = ["source", "edited", "residual, edited", "residual, source", "difference", "delta_C - delta_C'"]
    return ImageGrid(source.timesteps[i], columns, rows)


def vsd_grid(pairs: Pairs, seen: PairObservation, stages: Mapping[int, Tensor]) -> ImageGrid:
    """The pair's δ_D, and ε(∅) − ε_LoRA over the training, at one scale."""
    i = middle(seen.clean.timesteps, seen.clean.schedule.training_steps)
    uncond = seen.distorted.eps["uncond"]
    rows = []
    for n in _spread(len(pairs.clean)):
        scale = float(size(seen.delta_d[i, 0, n]))
        maps = [seen.delta_d[i, 0, n], *((uncond - eps)[i, 0, n] for eps in stages.values())]
        rows.append([pairs.clean[n], pairs.distorted[n], *(colours(value, scale) for value in maps)])
    return ImageGrid(
        seen.clean.timesteps[i], ["x_ID", "x_OOD", "delta_D", *(f"e() - e_LoRA, {steps}" for steps in stages)], rows
    )


def heat(direction: Tensor) -> Tensor:
    """[3,h,w] the length over channels of a direction [C,h,w], white at its largest."""
    length = direction.norm(dim=0, keepdim=True)
    return (length / length.max().clamp(min=1e-12)).expand(3, -1, -1)


def colours(latent: Tensor, scale: float | None = None) -> Tensor:
    """[3,h,w] the first three channels of [C,h,w] around gray; three times ``scale`` (default: its size) is full."""
    scale = float(size(latent)) if scale is None else scale
    return (0.5 + latent[:3] / (6 * max(scale, 1e-12))).clamp(0, 1)


def _spread(count: int, shown: int = SHOWN) -> list[int]:
    """Indices of at most ``shown`` of so many, evenly spread."""
    shown = min(shown, count)
    return [(2 * i + 1) * count // (2 * shown) for i in range(shown)]


def _decoded(prior: Prior, z: Tensor) -> Tensor:
    return prior.decode(z[None].to(prior.device))[0].clamp(0, 1).cpu()


def _tile(image: Tensor) -> Tensor:
    return F.interpolate(image[None], size=(TILE, TILE), mode="nearest")[0]
