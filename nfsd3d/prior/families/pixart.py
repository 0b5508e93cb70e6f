"""PixArt-Σ (2403.04692): T5 states with a mask; half of the denoiser's output is a variance, which is dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nfsd3d.prior.families.base import Family, Tensors, timesteps

if TYPE_CHECKING:
    from torch import Tensor


def embed(pipeline: Any, prompts: list[str], negative: bool) -> Tensors:
    """Token states, and the mask of those that are words."""
    embeddings, mask, _, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
    return {"embeddings": embeddings, "mask": mask}


def predict(denoiser: Any, latents: Tensor, t: Tensor, given: Tensors) -> Tensor:
    """The first half of the output's channels."""
    output: Tensor = denoiser(
        latents,
        encoder_hidden_states=given["embeddings"],
        encoder_attention_mask=given["mask"],
        timestep=t,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
    ).sample
    return output[:, : latents.shape[1]]


PIXART = Family("PixArt-Σ", ("PixArtSigmaPipeline",), embed, predict, clock=timesteps, lengths={"tokenizer": 300})
