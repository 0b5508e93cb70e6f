"""PRX: states of T5Gemma with a mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nfsd3d.prior.families.base import Family, Tensors, unit

if TYPE_CHECKING:
    from torch import Tensor


def embed(pipeline: Any, prompts: list[str], negative: bool) -> Tensors:
    """Token states, and the mask of those that are words."""
    embeddings, mask, *_ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
    return {"embeddings": embeddings, "mask": mask}


def predict(denoiser: Any, latents: Tensor, t: Tensor, given: Tensors) -> Tensor:
    """The velocity."""
    output: Tensor = denoiser(
        hidden_states=latents, timestep=t, encoder_hidden_states=given["embeddings"], attention_mask=given["mask"]
    ).sample
    return output


PRX = Family("PRX", ("PRXPipeline",), embed, predict, clock=unit, lengths={"tokenizer": 256})
