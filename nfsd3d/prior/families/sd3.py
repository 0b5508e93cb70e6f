"""Stable Diffusion 3 and 3.5 (2403.03206): CLIP and T5 states one after the other, and a pooled prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nfsd3d.prior.families.base import Family, Tensors

if TYPE_CHECKING:
    from torch import Tensor


def embed(pipeline: Any, prompts: list[str], negative: bool) -> Tensors:
    """Token states of the two CLIP encoders, side by side and padded, then T5's (zeros without it); the pooled ones."""
    embeddings, _, pooled, _ = pipeline.encode_prompt(prompts, prompts, prompts, do_classifier_free_guidance=False)
    return {"embeddings": embeddings, "pooled": pooled}


def predict(denoiser: Any, latents: Tensor, t: Tensor, given: Tensors) -> Tensor:
    """The velocity."""
    output: Tensor = denoiser(latents, given["embeddings"], given["pooled"], t).sample
    return output


SD3 = Family(
    "Stable Diffusion 3",
    ("StableDiffusion3Pipeline",),
    embed,
    predict,
    lengths={"tokenizer": 77, "tokenizer_2": 77, "tokenizer_3": 256},
    largest=lambda config: config.get("pos_embed_max_size"),
    optional=("tokenizer_3",),
)
