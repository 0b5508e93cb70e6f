"""Stable Diffusion 1 and 2, and the embedded model: a UNet conditioned on the states of one CLIP text encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nfsd3d.prior.families.base import Family, Tensors, timesteps

if TYPE_CHECKING:
    from torch import Tensor


def predict(denoiser: Any, latents: Tensor, t: Tensor, given: Tensors) -> Tensor:
    """The UNet's output; ``class_labels`` are for a UNet with a class embedding."""
    output: Tensor = denoiser(latents, t, given["embeddings"], given.get("class_labels"), return_dict=False)[0]
    return output


STABLE_DIFFUSION = Family(
    "Stable Diffusion 1 and 2", ("StableDiffusionPipeline",), None, predict, denoiser="unet", clock=timesteps
)
