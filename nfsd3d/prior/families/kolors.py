"""Kolors: Stable Diffusion XL's UNet with the states of ChatGLM; the empty prompt is encoded like any other."""

from __future__ import annotations

from typing import Any

from nfsd3d.prior.families.base import Family, Tensors, timesteps
from nfsd3d.prior.families.sdxl import predict


def embed(pipeline: Any, prompts: list[str], negative: bool) -> Tensors:
    """Token states, padded on the left, and the last state of the last token."""
    embeddings, _, pooled, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
    return {"embeddings": embeddings, "pooled": pooled}


KOLORS = Family(
    "Kolors",
    ("KolorsPipeline",),
    embed,
    predict,
    denoiser="unet",
    clock=timesteps,
    lengths={"tokenizer": 256},
)
