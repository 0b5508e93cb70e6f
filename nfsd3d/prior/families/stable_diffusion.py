"""Stable Diffusion 1 and 2, and the embedded model: a UNet conditioned on the states of one CLIP text encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nfsd3d.prior.families.base import Family, Tensors, timesteps

if TYPE_CHECKING:
    from torch import Tensor


def embed(pipeline: Any, prompts: list[str], negative: bool) -> Tensors:
    """Token states; a prior of this family has an encoder of its own, `nfsd3d.prior.text_encoders.ClipTextEncoder`."""
    embeddings, _ = pipeline.encode_prompt(prompts, pipeline.device, 1, False)
    return {"embeddings": embeddings}


def predict(denoiser: Any, latents: Tensor, t: Tensor, given: Tensors) -> Tensor:
    """The UNet's output; ``class_labels`` are for a UNet with a class embedding."""
    output: Tensor = denoiser(latents, t, given["embeddings"], given.get("class_labels"), return_dict=False)[0]
    return output


STABLE_DIFFUSION = Family(
    "Stable Diffusion 1 and 2", ("StableDiffusionPipeline",), embed, predict, denoiser="unet", clock=timesteps
)
