"""AuraFlow: states of Pile-T5, zero where the prompt has no word."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nfsd3d.prior.families.base import Family, Tensors, unit

if TYPE_CHECKING:
    from torch import Tensor


def embed(pipeline: Any, prompts: list[str], negative: bool) -> Tensors:
    """Token states, multiplied by the mask."""
    embeddings, *_ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
    return {"embeddings": embeddings}


def predict(denoiser: Any, latents: Tensor, t: Tensor, given: Tensors) -> Tensor:
    """The velocity."""
    output: Tensor = denoiser(latents, encoder_hidden_states=given["embeddings"], timestep=t).sample
    return output


def largest(config: Mapping[str, Any]) -> int | None:
    """The side of a square of as many patches as the table has positions."""
    positions = config.get("pos_embed_max_size")
    return None if positions is None else math.isqrt(positions)


AURAFLOW = Family(
    "AuraFlow",
    ("AuraFlowPipeline",),
    embed,
    predict,
    clock=unit,
    lengths={"tokenizer": 256},
    largest=largest,
)
