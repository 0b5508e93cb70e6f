"""Lumina-Image 2 (2503.21758): Gemma states with a mask; prompts, but not negative ones, follow a system prompt.

Its clock runs from noise to image, and so does its velocity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nfsd3d.prior.families.base import Family, Tensors, reversed_unit, rotary_limit

if TYPE_CHECKING:
    from torch import Tensor


def embed(pipeline: Any, prompts: list[str], negative: bool) -> Tensors:
    """Token states, and the mask of those that are words."""
    if negative:
        _, _, embeddings, mask = pipeline.encode_prompt([""] * len(prompts), negative_prompt=prompts)
    else:
        embeddings, mask, *_ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
    return {"embeddings": embeddings, "mask": mask}


def written(pipeline: Any, prompt: str, negative: bool) -> str:
    """The prompt behind the system prompt, unless it is negative."""
    return prompt if negative else f"{pipeline.system_prompt} <Prompt Start> {prompt}"


def predict(denoiser: Any, latents: Tensor, t: Tensor, given: Tensors) -> Tensor:
    """The velocity from noise to image."""
    output: Tensor = denoiser(
        hidden_states=latents,
        timestep=t,
        encoder_hidden_states=given["embeddings"],
        encoder_attention_mask=given["mask"],
    ).sample
    return output


LUMINA2 = Family(
    "Lumina-Image 2",
    ("Lumina2Pipeline", "Lumina2Text2ImgPipeline"),
    embed,
    predict,
    clock=reversed_unit,
    sign=-1.0,
    written=written,
    traceable=False,
    largest=rotary_limit,
    lengths={"tokenizer": 256},
)
