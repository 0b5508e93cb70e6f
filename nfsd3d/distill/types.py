"""Types of score distillation: the noise predictions, the model that makes them, and how latents are noised.

Importing this file does not import torch, so that names and settings of methods are checked before it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from nfsd3d.context import Context


class Denoiser(Protocol):
    """A network that predicts noise."""

    def predict_eps(self, z_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """[N,C,h,w] predicted noise at times ``t`` [N] given ``context`` [N]; no gradient."""
        ...


class ForwardProcess(Protocol):
    """The forward diffusion process of a model; `nfsd3d.prior.schedule.NoiseSchedule` documents the methods."""

    @property
    def training_steps(self) -> int:
        """Number of timesteps."""
        ...

    def time(self, timestep: Tensor) -> Tensor:
        """[N] the times of timesteps [N] (int64)."""
        ...

    def timestep(self, t: Tensor) -> Tensor:
        """[N] int64 the timesteps nearest to times [N]."""
        ...

    def alpha_bar(self, t: Tensor) -> Tensor:
        """[N] SNR / (1 + SNR) at ``t``."""
        ...

    def unit_alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients of signal and noise, each [N,1,1,1], divided by √(alpha² + sigma²)."""
        ...

    def rescaled(self, z: Tensor, t: Tensor) -> Tensor:
        """``z`` [N,C,h,w] times √(alpha² + sigma²)."""
        ...

    def add_noise(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """z_t = alpha z + sigma eps."""
        ...

    def eps_from_x0(self, z_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """The noise in ``z_t`` if ``x0`` is the clean latent."""
        ...

    def ddim_step(self, z_t: Tensor, eps: Tensor, t: Tensor, t_next: Tensor | None) -> Tensor:
        """Latents moved from ``t`` to ``t_next`` along ``eps``."""
        ...


class DiffusionModel(Denoiser, Protocol):
    """A denoiser with the forward process that it was trained with."""

    @property
    def schedule(self) -> ForwardProcess:
        """Its forward process."""
        ...


class Noising(Protocol):
    """How a method noises latents, and what it takes as their noise."""

    @property
    def batch_entries(self) -> int:
        """Batch entries of the denoiser for each latent in one call; 0 where the denoiser is not called."""
        ...

    def nfe(self, t: Tensor, training_steps: int) -> Tensor:
        """[N] expected function evaluations of the denoiser for latents at timesteps ``t`` [N] (int64)."""
        ...

    def __call__(
        self, model: DiffusionModel, z: Tensor, t: Tensor, contexts: Mapping[str, Context], rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """(z_t, noise) of latents ``z``, both [B,C,h,w] without gradient.

        ``t`` [B] are times, ``contexts`` the conditions [B] by the name of the prompt; ``rng`` is on the CPU.
        """
        ...


@dataclass(frozen=True)
class Predictions:
    """Noise predictions for a batch of noised latents; every tensor but ``t`` is [B,C,h,w].

    ``noise`` is the added noise, or the tensor that a method's noising returns for it. ``cond``, ``uncond`` and ``neg``
    are predicted given the prompt, the empty prompt and the negative prompt; ``source_cond`` and ``source_uncond`` from
    the noised source given its own prompt and the empty one; ``lora`` by VSD's LoRA network; ``later`` given the prompt
    from the same latents with the same noise at a noisier time. A prediction is 0 in batch entries where the method is
    not active, and NaN if the method does not list it. ``t`` [B] are the times,
    ``threshold`` the time from which NFSD uses the negative prompt.
    ``offset`` is what DVRF adds to the difference of the latents from the source's, in the units of a clean latent.
    """

    noise: Tensor
    cond: Tensor
    uncond: Tensor
    neg: Tensor
    source_cond: Tensor
    source_uncond: Tensor
    lora: Tensor
    later: Tensor
    t: Tensor
    threshold: float
    offset: Tensor | float = 0.0


_GIVEN = ("noise", "t", "threshold", "offset")
PREDICTIONS = tuple(field.name for field in fields(Predictions) if field.name not in _GIVEN)
"""The fields of `Predictions` that a network fills."""
