"""Stable Diffusion XL (2307.01952): two CLIP text encoders side by side, a pooled prompt, and the image's size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nfsd3d.prior.families.base import Family, Tensors, timesteps

if TYPE_CHECKING:
    from torch import Tensor


def embed(pipeline: Any, prompts: list[str], negative: bool) -> Tensors:
    """Token states, and the second encoder's pooled state.

    Where the model's index says so, the empty prompt is zeros, as in its training, and not an encoded empty text.
    """
    import torch

    embeddings, _, pooled, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
    if pipeline.config.force_zeros_for_empty_prompt:
        said = torch.tensor([float(prompt != "") for prompt in prompts]).to(embeddings)
        embeddings, pooled = embeddings * said[:, None, None], pooled * said[:, None]
    return {"embeddings": embeddings, "pooled": pooled}


def predict(denoiser: Any, latents: Tensor, t: Tensor, given: Tensors) -> Tensor:
    """The UNet's output for images that were neither scaled nor cropped in its training: size, corner (0, 0), size."""
    import torch

    # Latents of Stable Diffusion's autoencoders have an eighth of the image's pixels along each axis.
    height, width = (8 * side for side in latents.shape[-2:])
    sizes = torch.tensor([height, width, 0, 0, height, width], dtype=latents.dtype, device=latents.device)
    added = {"text_embeds": given["pooled"], "time_ids": sizes.expand(len(latents), 6)}
    output: Tensor = denoiser(latents, t, given["embeddings"], added_cond_kwargs=added).sample
    return output


SDXL = Family(
    "Stable Diffusion XL",
    ("StableDiffusionXLPipeline",),
    embed,
    predict,
    denoiser="unet",
    clock=timesteps,
    lengths={"tokenizer": 77, "tokenizer_2": 77},
)
