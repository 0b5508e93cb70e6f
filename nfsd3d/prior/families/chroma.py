"""Chroma: T5 states, all but one of whose padding is masked; latents are packed in squares of 2x2.

The mask is one of booleans: diffusers 0.42.1 makes it of the numbers 0 and 1, which its attention adds, and which hide
nothing (``findings/chroma_mask.sh``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nfsd3d.prior.families.base import Family, Tensors, unit

if TYPE_CHECKING:
    from torch import Tensor


def embed(pipeline: Any, prompts: list[str], negative: bool) -> Tensors:
    """Token states, and the mask of words and of the first padding."""
    embeddings, _, mask, *_ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
    return {"embeddings": embeddings, "mask": mask.bool()}


def predict(denoiser: Any, latents: Tensor, t: Tensor, given: Tensors) -> Tensor:
    """The velocity."""
    import torch

    count, channels, height, width = latents.shape
    rows, columns = height // 2, width // 2
    packed = latents.view(count, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5)
    places = torch.zeros(rows, columns, 3, dtype=latents.dtype, device=latents.device)
    places[..., 1] += torch.arange(rows, device=latents.device)[:, None]
    places[..., 2] += torch.arange(columns, device=latents.device)
    mask = given["mask"].bool()  # that of a cache may be numbers
    output: Tensor = denoiser(
        hidden_states=packed.reshape(count, rows * columns, 4 * channels),
        timestep=t,
        encoder_hidden_states=given["embeddings"],
        txt_ids=places.new_zeros(given["embeddings"].shape[1], 3),
        img_ids=places.reshape(rows * columns, 3),
        attention_mask=torch.cat([mask, mask.new_ones(count, rows * columns)], 1),
    ).sample
    unpacked = output.view(count, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return unpacked.reshape(latents.shape)


CHROMA = Family("Chroma", ("ChromaPipeline",), embed, predict, clock=unit, lengths={"tokenizer": 512})
