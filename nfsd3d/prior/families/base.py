"""What a family of models is: a row of `nfsd3d.prior.families.table.FAMILIES`. Importing it does not import torch.

Numbers such as scales, shifts and sizes are never in a row: they come from the model's own files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Tensors = Mapping[str, "Tensor"]

Embed = Callable[[Any, list[str], bool], Tensors]
"""(diffusers pipeline with text encoders alone, prompts [N], whether they are negative ones) -> tensors [N,...].

A negative prompt, the empty one among them, is what guidance moves away from; some families encode it in another way.
"""

Predict = Callable[[Any, "Tensor", "Tensor", Tensors], "Tensor"]
"""(denoiser, latents [N,C,h,w], its timesteps [N], the tensors of `Embed`) -> its output [N,C,h,w] or more channels."""


def timesteps(t: Tensor) -> Tensor:
    """The time itself: a diffusion model's timestep."""
    return t


def thousand(t: Tensor) -> Tensor:
    """1000 t of a rectified flow."""
    return 1000 * t


def unit(t: Tensor) -> Tensor:
    """t of a rectified flow."""
    return t


def reversed_unit(t: Tensor) -> Tensor:
    """1 - t of a rectified flow: 0 is noise, 1 the image."""
    return 1 - t


def as_it_is(pipeline: Any, prompt: str, negative: bool) -> str:
    """The prompt alone."""
    return prompt


def no_limit(config: Mapping[str, Any]) -> int | None:
    """Images of any size."""
    return None


def rotary_limit(config: Mapping[str, Any]) -> int | None:
    """The rotary embedding's tables of the two axes of an image, behind that of the text."""
    lengths = config.get("axes_lens")
    return min(lengths[1:]) if isinstance(lengths, list) and len(lengths) > 1 else None


@dataclass(frozen=True)
class Family:
    """A family of latent diffusion models or rectified flows, and how its denoiser is called.

    Args:
        title: for messages and documentation.
        pipelines: classes in ``model_index.json`` that belong to it; diffusers has the first.
        denoiser: the folder of its denoiser, ``unet`` or ``transformer``.
        embed: prompts -> the denoiser's conditions; None: the prior has a text encoder of its own.
        predict: calls the denoiser.
        clock: a time of the schedule -> the timestep that the denoiser is given.
        sign: +1 if the denoiser predicts what its scheduler's prediction type says, -1 if its negative.
        shifted: whether latents are shifted where the autoencoder's configuration has a shift.
        written: (pipeline, prompt, whether it is negative) -> the text whose tokens are counted.
        lengths: the most tokens that each tokenizer's text encoder reads, by its folder, with those of begin and end.
        traceable: whether it runs without values, on PyTorch's meta device, so that its memory can be predicted.
        multiple: images have a multiple of this many pixels for each latent along each axis (2: patches of 2x2).
        largest: the denoiser's configuration -> the most patches of an image along each axis; None: no limit.
        optional: tokenizers that a model may lack together with their text encoders.
    """

    title: str
    pipelines: tuple[str, ...]
    embed: Embed | None
    predict: Predict
    denoiser: str = "transformer"
    clock: Callable[[Tensor], Tensor] = thousand
    sign: float = 1.0
    shifted: bool = True
    written: Callable[[Any, str, bool], str] = as_it_is
    lengths: Mapping[str, int] = field(default_factory=dict)
    multiple: int = 2
    traceable: bool = True
    largest: Callable[[Mapping[str, Any]], int | None] = no_limit
    optional: tuple[str, ...] = ()

    @property
    def no_own_size(self) -> str:
        """The error of no image size for models that have none of their own."""
        return f"prior.image_size=null: a {self.title} model does not say its own size; set for example 512"
