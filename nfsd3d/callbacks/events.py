"""What a training step computed, for callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from nfsd3d.distill.types import Predictions
    from nfsd3d.generators.base import Images, Latents


@dataclass(frozen=True)
class StepTensors:
    """The tensors of a step of score distillation with B views, without gradients.

    They are valid until the callback returns: a captured CUDA graph reuses their memory. Clone what you keep.

    Args:
        view: what the generator made: a ``Rendering`` of a scene (image, opacity, depth), ``Images`` or ``Latents``.
        latents: [B,C,h,w] z, scaled as the prior's denoiser expects.
        noised: [B,C,h,w] z_t.
        times: [B] t, on the prior's own clock.
        predictions: the noise and the noise predictions; NaN where the method does not read one.
        guidance_scale: s of this step.
        weight: w(t), which broadcasts to the latents.
        direction: [B,C,h,w] the method's direction, in the sign of ε: the latents are moved against it.
        delta_c: [B,C,h,w] the condition direction δ_C = ε(y) - ε(∅); None for a method that does not read both.
    """

    view: Images | Latents
    latents: Tensor
    noised: Tensor
    times: Tensor
    predictions: Predictions
    guidance_scale: float
    weight: Tensor
    direction: Tensor
    delta_c: Tensor | None

    @property
    def gradient(self) -> Tensor:
        """[B,C,h,w] w(t) times the direction: the gradient on the latents, which is summed over the latent."""
        return self.weight * self.direction

    @property
    def rest(self) -> Tensor:
        """[B,C,h,w] the direction without s δ_C: δ_D for NFSD, ε(∅) - ε for SDS, 0 for CSD."""
        return self.direction if self.delta_c is None else self.direction - self.guidance_scale * self.delta_c


@dataclass(frozen=True)
class StepEvent:
    """A finished step: ``step`` of ``steps`` (the first is 1), its tensors, and its numbers on the device.

    ``tensors`` is None for what is no score distillation, such as an oracle fit.
    """

    step: int
    steps: int
    tensors: StepTensors | None
    numbers: Mapping[str, Tensor]

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The step's numbers, see `nfsd3d.train.step.StepMetrics`. Reading them synchronises with a GPU."""
        return {name: float(value) for name, value in self.numbers.items()}


def detached(view: Images | Latents) -> Images | Latents:
    """``view`` without gradients."""
    tensors: dict[str, Any] = {n: value.detach() for n, value in vars(view).items() if isinstance(value, torch.Tensor)}
    return replace(view, **tensors)
