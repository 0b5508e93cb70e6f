"""Z-Image (2511.22699): states of Qwen3 for a chat message, of each prompt's own length.

Its clock runs from noise to image, and so does its velocity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nfsd3d.prior.families.base import Family, Tensors, reversed_unit, rotary_limit

if TYPE_CHECKING:
    from torch import Tensor

LENGTH = 512
"""The longest prompt in tokens, with those of the chat."""


def embed(pipeline: Any, prompts: list[str], negative: bool) -> Tensors:
    """Token states, padded with zeros, and the mask of those that are words."""
    import torch

    states, _ = pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=False, max_sequence_length=LENGTH)
    embeddings = states[0].new_zeros(len(states), LENGTH, states[0].shape[-1])
    mask = torch.zeros(len(states), LENGTH, dtype=torch.bool, device=embeddings.device)
    for row, state in enumerate(states):
        embeddings[row, : len(state)], mask[row, : len(state)] = state, True
    return {"embeddings": embeddings, "mask": mask}


def written(pipeline: Any, prompt: str, negative: bool) -> str:
    """The prompt as a message of a chat."""
    chat = [{"role": "user", "content": prompt}]
    text: str = pipeline.tokenizer.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    return text


def predict(denoiser: Any, latents: Tensor, t: Tensor, given: Tensors) -> Tensor:
    """The velocity from noise to image; the denoiser takes lists, of images of one frame and of prompts."""
    import torch

    words = [states[mask] for states, mask in zip(given["embeddings"], given["mask"], strict=True)]
    outputs = denoiser(list(latents.unsqueeze(2).unbind(0)), t, words, return_dict=False)[0]
    return torch.stack(outputs).squeeze(2)


ZIMAGE = Family(
    "Z-Image",
    ("ZImagePipeline",),
    embed,
    predict,
    clock=reversed_unit,
    sign=-1.0,
    written=written,
    traceable=False,
    largest=rotary_limit,
    lengths={"tokenizer": LENGTH},
)
