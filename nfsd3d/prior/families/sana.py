"""SANA (2410.10629): Gemma states with a mask; prompts, but not negative ones, follow an instruction."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from nfsd3d.prior.families.base import Family, Tensors

if TYPE_CHECKING:
    from torch import Tensor


def embed(pipeline: Any, prompts: list[str], negative: bool) -> Tensors:
    """Token states, and the mask of those that are words."""
    if negative:
        _, _, embeddings, mask = pipeline.encode_prompt([""] * len(prompts), negative_prompt=prompts)
        return {"embeddings": embeddings, "mask": mask}
    instruction = inspect.signature(type(pipeline).__call__).parameters["complex_human_instruction"].default
    embeddings, mask, *_ = pipeline.encode_prompt(
        prompts, do_classifier_free_guidance=False, complex_human_instruction=instruction
    )
    return {"embeddings": embeddings, "mask": mask}


def predict(denoiser: Any, latents: Tensor, t: Tensor, given: Tensors) -> Tensor:
    """The velocity, at the model's own scale of times."""
    output: Tensor = denoiser(
        latents,
        encoder_hidden_states=given["embeddings"],
        encoder_attention_mask=given["mask"],
        timestep=t * denoiser.config.timestep_scale,
    ).sample
    return output[:, : latents.shape[1]]


SANA = Family("SANA", ("SanaPipeline",), embed, predict, lengths={"tokenizer": 300}, multiple=1)
