"""Settings of the image generators; those of the NeRF are in `nfsd3d.generators.nerf.settings`."""

from dataclasses import dataclass
from typing import Literal

from pydantic import NonNegativeFloat


@dataclass(frozen=True, kw_only=True)
class LatentSettings:
    """Images that are optimised as the prior's latent codes; there are ``train.batch_size``."""

    type: Literal["latent"] = "latent"
    """Kind of generator."""
    initial_std: NonNegativeFloat
    """Standard deviation of the initial Gaussian noise; latents of images have about 1."""


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """Images that are optimised as pixels; there are ``train.batch_size``."""

    type: Literal["image"] = "image"
    """Kind of generator."""
    initial_std: NonNegativeFloat
    """Standard deviation of the initial Gaussian noise around mid-grey, where pixel values span [0, 1]."""
