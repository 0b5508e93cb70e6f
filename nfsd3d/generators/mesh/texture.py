"""Trilinear texture sampling: a pyramid of averaged levels (mip maps), read at the size of a pixel.

Design note. Problem: the gradient of a pixel that is larger than a texel goes to all texels of a square alike, and an
optimiser that learns from it makes a texture of squares. Idea: levels are made by a wider, smooth filter than the mean
of four texels. A gradient then arrives as a smooth bump, twice as wide.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nfsd3d.generators.mesh.gather import gather


class Pyramid:
    """The levels of a texture [S,S,C], each of half the size, rounded up: down to a single texel."""

    def __init__(self, texture: Tensor) -> None:
        levels = [texture.permute(2, 0, 1)[None]]
        while levels[-1].shape[-1] > 1:
            levels.append(_halved(levels[-1]))
        sizes = torch.tensor([level.shape[-1] for level in levels])
        self._sizes = sizes.to(texture.device)
        self._starts = (sizes.square().cumsum(0) - sizes.square()).to(texture.device)
        self._texels = torch.cat([level[0].flatten(1).T for level in levels])

    def sample(self, uv: Tensor, footprint: Tensor) -> Tensor:
        """[N,C] colours at ``uv`` [N,2] in [0,1], x to the right and y downwards, bilinear within and between levels.

        ``footprint`` [N]: the side of a pixel in the units of uv.
        """
        last = len(self._sizes) - 1
        level = (footprint * self._sizes[0]).clamp(min=1).log2().clamp(max=last)
        lower = level.floor().long()
        part = (level - lower)[:, None].to(uv)
        return self._at(uv, lower) * (1 - part) + self._at(uv, (lower + 1).clamp(max=last)) * part

    def _at(self, uv: Tensor, level: Tensor) -> Tensor:
        size = self._sizes[level][:, None]
        place = (uv * size - 0.5).clamp(min=0).minimum((size - 1).to(uv))
        low = place.detach().floor().long()
        high = (low + 1).minimum(size - 1)
        x, y = (place - low)[:, :1], (place - low)[:, 1:]
        start = self._starts[level]

        def texels(column: Tensor, row: Tensor) -> Tensor:
            return gather(self._texels, start + row * size[:, 0] + column)

        top = texels(low[:, 0], low[:, 1]) * (1 - x) + texels(high[:, 0], low[:, 1]) * x
        bottom = texels(low[:, 0], high[:, 1]) * (1 - x) + texels(high[:, 0], high[:, 1]) * x
        return top * (1 - y) + bottom * y


def _halved(level: Tensor) -> Tensor:
    """[1,C,S/2,S/2] of [1,C,S,S]: each texel from four by four, with weights of 1, 3, 3, 1 along both axes.

    An odd size is rounded up, with weights to match.
    """
    size = (level.shape[-1] + 1) // 2
    return F.interpolate(level, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
