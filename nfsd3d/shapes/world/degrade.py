"""Mild image degradations, each with its caption word: the bad images in the embedded prior's training data.

The first ten words are the paper's negative prompt (arXiv 2310.17590, section 4); the others are common in negative
prompts for Stable Diffusion. Only captions of degraded images contain these words.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

NEGATIVE_WORDS = (
    "unrealistic",
    "blurry",
    "low quality",
    "out of focus",
    "ugly",
    "low contrast",
    "dull",
    "dark",
    "low-resolution",
    "gloomy",
)
OTHER_WORDS = ("smooth", "pixelated", "foggy", "hazy", "noisy", "malformed")


def _uniform(rng: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(1, generator=rng))


def _gray(image: Tensor) -> Tensor:
    return (image * image.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)


def _convolve(image: Tensor, kernel: Tensor) -> Tensor:
    pad = kernel.shape[-1] // 2
    padded = F.pad(image[None], (pad, pad, pad, pad), mode="replicate")
    return F.conv2d(padded, kernel.expand(3, 1, -1, -1), groups=3)[0]


def _gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    x = torch.arange(-4, 5, dtype=torch.float32)
    line = torch.exp(-x.square() / (2 * sigma**2))
    return _convolve(image, torch.outer(line, line) / line.sum() ** 2)


def _disc_blur(image: Tensor, radius: float) -> Tensor:
    x = torch.arange(-4, 5, dtype=torch.float32)
    disc = (radius + 0.5 - torch.hypot(x[:, None], x[None, :])).clamp(0, 1)
    return _convolve(image, disc / disc.sum())


def _resample(image: Tensor, factor: float, mode: str) -> Tensor:
    height, width = image.shape[1:]
    small = F.interpolate(image[None], scale_factor=1 / factor, mode="area")
    align = {"align_corners": False} if mode == "bilinear" else {}
    return F.interpolate(small, size=(height, width), mode=mode, **align)[0]


def _warp(image: Tensor, rng: torch.Generator, amount: float) -> Tensor:
    """A smooth random displacement of ``amount`` pixels (root mean square)."""
    height, width = image.shape[1:]
    coarse = torch.randn(1, 2, 5, 5, generator=rng) * amount
    shift = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)[0]
    theta = torch.eye(2, 3)[None]
    grid = F.affine_grid(theta, [1, 3, height, width], align_corners=False)
    grid = grid + shift.permute(1, 2, 0)[None] * (2 / width)
    return F.grid_sample(image[None], grid, padding_mode="border", align_corners=False)[0]


def _fog(image: Tensor, rng: torch.Generator, amount: float) -> Tensor:
    density = F.interpolate(torch.rand(1, 1, 3, 3, generator=rng), size=image.shape[1:], mode="bilinear")[0]
    veil = amount * (0.7 + 0.6 * density)
    return image * (1 - veil) + 0.82 * veil


def _unrealistic(image: Tensor, rng: torch.Generator) -> Tensor:
    levels = _uniform(rng, 3, 5)
    return ((image * levels).round() / levels).lerp(image, 0.2)


def _low_quality(image: Tensor, rng: torch.Generator) -> Tensor:
    blocks = _resample(image, 4, "nearest") - _resample(image, 4, "bilinear")
    noise = torch.randn(image.shape, generator=rng) * _uniform(rng, 0.02, 0.05)
    return _resample(image, 1.5, "bilinear") + 0.6 * blocks + noise


def _gloomy(image: Tensor, rng: torch.Generator) -> Tensor:
    tint = image.new_tensor([0.62, 0.68, 0.8])[:, None, None]
    return image.lerp(_gray(image).expand_as(image), 0.35) * tint * _uniform(rng, 0.75, 0.95)


DEGRADATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "unrealistic": _unrealistic,
    "blurry": lambda image, rng: _gaussian_blur(image, _uniform(rng, 0.9, 1.8)),
    "low quality": _low_quality,
    "out of focus": lambda image, rng: _disc_blur(image, _uniform(rng, 1.3, 2.4)),
    "ugly": lambda image, rng: _warp(image, rng, _uniform(rng, 1.0, 1.8)),
    "low contrast": lambda image, rng: image.lerp(image.mean((1, 2), keepdim=True), _uniform(rng, 0.35, 0.6)),
    "dull": lambda image, rng: image.lerp(_gray(image).expand_as(image), _uniform(rng, 0.4, 0.75)),
    "dark": lambda image, rng: image * _uniform(rng, 0.45, 0.7),
    "low-resolution": lambda image, rng: _resample(image, _uniform(rng, 2.0, 3.2), "bilinear"),
    "gloomy": _gloomy,
    "smooth": lambda image, rng: _gaussian_blur(image, _uniform(rng, 0.8, 1.3)).lerp(image, 0.15),
    "pixelated": lambda image, rng: _resample(image, _uniform(rng, 2.5, 4.0), "nearest"),
    "foggy": lambda image, rng: _fog(image, rng, _uniform(rng, 0.35, 0.6)),
    "hazy": lambda image, rng: _fog(image, rng, _uniform(rng, 0.2, 0.4)),
    "noisy": lambda image, rng: image + torch.randn(image.shape, generator=rng) * _uniform(rng, 0.06, 0.14),
    "malformed": lambda image, rng: _warp(image, rng, _uniform(rng, 2.0, 3.2)),
}


def degrade(image: Tensor, words: tuple[str, ...], rng: torch.Generator) -> Tensor:
    """[3,H,W] the image in [0,1] after the degradations of ``words``, one after the other."""
    for word in words:
        image = DEGRADATIONS[word](image, rng).clamp(0, 1)
    return image


def sample_degradations(rng: torch.Generator) -> tuple[str, ...]:
    """One or two degradation words, three in one case of ten."""
    count = int(torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), 1, generator=rng)) + 1
    pool = NEGATIVE_WORDS if torch.rand(1, generator=rng) < 0.8 else OTHER_WORDS
    return tuple(pool[int(i)] for i in torch.randperm(len(pool), generator=rng)[:count])
