"""Settings of the image generators and of plug-ins; those of the NeRF are in `nfsd3d.generators.nerf.settings`."""

from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue, NonNegativeFloat, PositiveFloat


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


@dataclass(frozen=True, kw_only=True)
class PluginGeneratorSettings:
    """A generator from outside the package, see `nfsd3d.generators.plugins`."""

    type: str
    """Name under which the generator is registered."""
    options: dict[str, JsonValue]
    """The generator's own settings."""
    learning_rate: dict[str, PositiveFloat]
    """AdamW's learning rates by parameter group, in place of ``train.learning_rate``."""
