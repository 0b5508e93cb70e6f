"""CogView4: states of GLM-4, padded to a multiple of 16 tokens that are all read, and the image's size.

Prompts of other lengths are other calls: diffusers 0.42.1 adds this denoiser's mask to its attention as 0 or 1, which
hides nothing (``findings/cogview4_mask.sh``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nfsd3d.prior.families.base import Family, Tensors, thousand

if TYPE_CHECKING:
    from torch import Tensor

LENGTH = 1024
"""The longest prompt in tokens."""


def embed(pipeline: Any, prompts: list[str], negative: bool) -> Tensors:
    """Token states, followed by zeros, and the mask of the states."""
    import torch

    states, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=LENGTH)
    embeddings = states.new_zeros(len(states), LENGTH, states.shape[-1])
    embeddings[:, : states.shape[1]] = states
    mask = torch.arange(LENGTH, device=states.device) < states.shape[1]
    return {"embeddings": embeddings, "mask": mask.expand(len(states), LENGTH)}


def predict(denoiser: Any, latents: Tensor, t: Tensor, given: Tensors) -> Tensor:
    """The velocity for images that were neither scaled nor cropped, a call for each length of prompts."""
    import torch

    # Latents have an eighth of the image's pixels along each axis.
    size = torch.tensor([[8 * side for side in latents.shape[-2:]]], dtype=latents.dtype, device=latents.device)
    lengths = given["mask"].sum(1)
    output = torch.empty_like(latents)
    for length in lengths.unique().tolist():
        entries = lengths == length
        sizes = size.expand(int(entries.sum()), 2)
        output[entries] = denoiser(
            hidden_states=latents[entries],
            encoder_hidden_states=given["embeddings"][entries, :length],
            timestep=t[entries],
            original_size=sizes,
            target_size=sizes,
            crop_coords=torch.zeros_like(sizes),
            return_dict=False,
        )[0]
    return output


COGVIEW4 = Family(
    "CogView4",
    ("CogView4Pipeline",),
    embed,
    predict,
    clock=thousand,
    lengths={"tokenizer": LENGTH},
    traceable=False,
)
