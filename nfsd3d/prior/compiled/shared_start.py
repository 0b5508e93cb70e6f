"""The layers of a UNet before its first use of the prompt, once for predictions that differ only in the prompt.

Score distillation asks for two or three predictions of each noised latent at the same time. All of them begin with the
same convolutions, at the UNet's largest resolution.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from nfsd3d.prior.compiled.denoiser import Denoise, TracedDenoiser

KNOWN_BLOCKS = {"DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"}
"""Kinds of blocks that :func:`sharing` knows."""

PROBE = 16
"""Parts of two bytes of a latent that :func:`distinct` compares with those of all others."""


def can_share(denoiser: Any) -> bool:
    """Whether :func:`sharing` applies: a UNet of diffusers conditioned on nothing but time and tokens."""
    return (
        type(denoiser).__name__ == "UNet2DConditionModel"
        and denoiser.class_embedding is None
        and denoiser.config.addition_embed_type is None
        and {*denoiser.config.down_block_types, *denoiser.config.up_block_types} <= KNOWN_BLOCKS
        and denoiser.config.mid_block_type == "UNetMidBlock2DCrossAttn"
        and any(_attentions(block) for block in denoiser.down_blocks)
    )


@contextmanager
def sharing(unet: Any, entries: Tensor) -> Iterator[None]:
    """Within the block, ``unet`` maps U latents, their times and N conditions to N predictions.

    Prediction n is of latent ``entries[n]`` (int64 [N]). If U is N, the entries are in order. The layers before the
    first attention are evaluated of U latents, whose numbers differ from those of N by rounding at most.
    """

    def each(values: Tensor, like: Tensor) -> Tensor:
        return values if len(values) == len(like) else values.index_select(0, entries)

    def before_first_attention(module: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states, *others = arguments
        return (states.index_select(0, entries), *others)

    def before_residual_block(module: Any, arguments: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        states, time = arguments
        return states, each(time, states)

    def before_up_block(module: Any, arguments: tuple[()], named: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        skipped = tuple(each(skip, named["hidden_states"]) for skip in named["res_hidden_states_tuple"])
        return arguments, {**named, "res_hidden_states_tuple": skipped}

    first = next(_attentions(block)[0] for block in unet.down_blocks if _attentions(block))
    hooks = [first.register_forward_pre_hook(before_first_attention)]
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        hooks += [resnet.register_forward_pre_hook(before_residual_block) for resnet in block.resnets]
    hooks += [block.register_forward_pre_hook(before_up_block, with_kwargs=True) for block in unet.up_blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class SharedStart:
    """A denoiser of N latents by a traced one of the distinct ones among them, of which each is taken once."""

    def __init__(self, traced: TracedDenoiser) -> None:
        """``traced`` is of a function of :func:`shared`."""
        self._traced = traced

    @property
    def is_traced(self) -> bool:
        """Whether it runs traced, as it does after some calls."""
        return self._traced.is_traced

    def __call__(self, *arguments: Tensor, at_most: int | None = None) -> Tensor:
        """The denoiser's output [N,C,h,w]."""
        latents, t, *given = arguments
        chosen, entries = distinct(latents, t)
        return self._traced(latents[chosen], t[chosen], *given, entries, at_most=at_most)


def shared(denoise: Denoise, unet: Any) -> Denoise:
    """``denoise`` by ``unet`` as a function of U latents and times, N conditions, and the latent of each of these."""

    def denoise_shared(latents: Tensor, t: Tensor, *others: Tensor) -> Tensor:
        *given, entries = others
        with sharing(unet, entries):
            return denoise(latents, t, *given)

    return denoise_shared


def distinct(latents: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Indices [U] of the distinct pairs of a latent [N,...] and a time [N], and the place [N] of each among them."""
    bits, times = latents.flatten(1).view(torch.int16), t[:, None].contiguous().view(torch.int16)
    # Noised latents that begin alike are the same, so that a few numbers of each are compared with all others.
    start = torch.cat([bits[:, :PROBE], times], dim=1)
    first = (start[:, None] == start).all(-1).int().argmax(1)
    if not torch.equal(bits, bits[first]):  # they only begin alike
        first = torch.arange(len(t), device=t.device)
    chosen, entries = first.unique(return_inverse=True)
    return chosen, entries


def _attentions(block: Any) -> Any:
    return getattr(block, "attentions", ())
