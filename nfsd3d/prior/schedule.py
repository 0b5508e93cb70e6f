"""The forward process z_t = alpha z + sigma eps of a model, in its own time, and what follows from a noise prediction.

Two processes differ only in their clock and in the scale of z_t: at equal signal-to-noise ratio (alpha / sigma)² a
latent of one is a multiple of a latent of the other, with the same noise. So both have the same *timesteps*, 0 to
T - 1, 0 the least noisy: numbers of noise levels. A *time* is what the model's own clock shows at such a level:

| process | time of a timestep | alpha, sigma |
|---|---|---|
| :class:`VariancePreserving` | the timestep itself (int64) | √ᾱ, √(1 - ᾱ) |
| :class:`RectifiedFlow` | a noise level in (0, 1) (float64), by default as on Stable Diffusion | 1 - t, t |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Self

import torch
from torch import Tensor

from nfsd3d.device import move
from nfsd3d.shared_batch import draw


def stable_diffusion_alphas() -> Tensor:
    """[1000] float64 ᾱ of Stable Diffusion's training: √β is linear from √.00085 to √.012 (2112.10752)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


@dataclass(frozen=True)
class NoiseSchedule(ABC):
    """A forward process with T noise levels, of which ``alphas_cumprod`` [T] holds SNR / (1 + SNR), decreasing.

    Methods take times ``t`` [N], on the schedule's device or on the CPU, and return coefficients in the dtype of
    ``alphas_cumprod``, or results in the dtype of the latents [N,C,h,w].
    """

    alphas_cumprod: Tensor

    @property
    def training_steps(self) -> int:
        """T, the number of timesteps."""
        return self.alphas_cumprod.shape[0]

    def to(self, device: torch.device | str) -> Self:
        """The same schedule on ``device``."""
        moved = type(self)(self.alphas_cumprod.to(device))
        object.__setattr__(moved, "_on_cpu", self._on_cpu)
        return moved

    @cached_property
    def _on_cpu(self) -> Tensor:
        return self.alphas_cumprod.cpu()

    @property
    @abstractmethod
    def ends_in_noise(self) -> bool:
        """Whether alpha is 0 at :attr:`last_time`, so that z_t holds nothing of the image there."""

    @abstractmethod
    def time(self, timestep: Tensor) -> Tensor:
        """[N] the times of timesteps [N] (int64), on their device."""

    @abstractmethod
    def timestep(self, t: Tensor) -> Tensor:
        """[N] int64 the timesteps nearest to times [N], on their device."""

    @abstractmethod
    def alpha_bar(self, t: Tensor) -> Tensor:
        """[N] SNR / (1 + SNR) at ``t``, on the device of ``t``; times on the CPU need no host-device synchronisation.

        A function of it, such as a weight w(t), means the same for every process.
        """

    @abstractmethod
    def alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise coefficients (alpha, sigma), each [N,1,1,1], in the dtype and on the device of ``like``."""

    @abstractmethod
    def rescaled(self, z: Tensor, t: Tensor) -> Tensor:
        """``z`` [N,C,h,w] of a variance-preserving process at the scale of this one: times √(alpha² + sigma²)."""

    @abstractmethod
    def sampling_times(self, steps: int) -> Tensor:
        """[steps] decreasing times at which a sampler calls the model, the first the noisiest of all, on the CPU.

        Raises:
            ValueError: unless 1 <= steps <= T.
        """

    def unit_alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) divided by √(alpha² + sigma²): those of the variance-preserving process of equal SNR."""
        alpha_bar = move(self.alpha_bar(t), like.device)[:, None, None, None]
        return alpha_bar.sqrt().to(like.dtype), (1 - alpha_bar).sqrt().to(like.dtype)

    def add_noise(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """z_t = alpha z + sigma eps."""
        alpha, sigma = self.alpha_sigma(t, z)
        return alpha * z + sigma * eps

    def x0_from_eps(self, z_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The clean latent that a noise prediction implies."""
        alpha, sigma = self.alpha_sigma(t, z_t)
        return (z_t - sigma * eps) / alpha

    def eps_from_x0(self, z_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """The noise that a prediction of the clean latent implies."""
        alpha, sigma = self.alpha_sigma(t, z_t)
        return (z_t - alpha * x0) / sigma

    def sample_times(self, rng: torch.Generator, count: int, t_min: float, t_max: float) -> Tensor:
        """[count] times of timesteps uniform between two fractions of T (both included), on the CPU.

        Raises:
            ValueError: unless 0 <= t_min <= t_max <= 1, up to rounding.
        """
        t_max = max(t_max, t_min) if t_max > t_min - 1e-9 else t_max
        if not 0 <= t_min <= t_max <= 1:
            raise ValueError(f"timesteps need 0 <= t_min <= t_max <= 1, got t_min={t_min}, t_max={t_max}")
        last = self.training_steps - 1
        low, high = (min(round(fraction * self.training_steps), last) for fraction in (t_min, t_max))
        return self.time(draw(partial(torch.randint, low, high + 1), (count,), rng))

    def ddim_step(self, z_t: Tensor, eps: Tensor, t: Tensor, t_next: Tensor | None) -> Tensor:
        """Latents moved deterministically from ``t`` to ``t_next`` [N] along ``eps`` (2010.02502, eq. 12, eta = 0).

        On a rectified flow it is the Euler step z_t + (t_next - t) v. ``t_next`` may be noisier than ``t`` (inversion);
        None is the clean end, where the result is the predicted x0.
        """
        x0 = self.x0_from_eps(z_t, eps, t)
        return x0 if t_next is None else self.add_noise(x0, eps, t_next)


@dataclass(frozen=True)
class VariancePreserving(NoiseSchedule):
    """alpha² + sigma² = 1 (2006.11239); ``alphas_cumprod`` are the model's own cumulative products ᾱ, in [0, 1]."""

    @property
    def ends_in_noise(self) -> bool:
        """Whether alpha is 0 at the last timestep (zero terminal SNR, 2305.08891)."""
        return bool(self._on_cpu[-1] == 0)

    def time(self, timestep: Tensor) -> Tensor:
        """[N] the timesteps themselves."""
        return timestep

    def timestep(self, t: Tensor) -> Tensor:
        """[N] the times themselves."""
        return t

    def alpha_bar(self, t: Tensor) -> Tensor:
        """[N] ᾱ at ``t``; see the base class."""
        return (self._on_cpu if t.device.type == "cpu" else self.alphas_cumprod)[t]

    def alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(√ᾱ, √(1 - ᾱ)); see the base class."""
        return self.unit_alpha_sigma(t, like)

    def rescaled(self, z: Tensor, t: Tensor) -> Tensor:
        """``z`` itself."""
        return z

    def sampling_times(self, steps: int) -> Tensor:
        """Evenly spaced timesteps, always from T - 1 (2305.08891, "trailing")."""
        return _trailing(self.training_steps, steps)


@dataclass(frozen=True)
class RectifiedFlow(NoiseSchedule):
    """alpha = 1 - t, sigma = t, for any time in [0, 1] (2209.03003; 2210.02747).

    ``alphas_cumprod`` says which times the timesteps are: those of equal SNR. By default they are Stable Diffusion's,
    so that a range of timesteps, NFSD's threshold and w(t) mean the same noise as on Stable Diffusion: its timestep 200
    is t = .364.
    """

    alphas_cumprod: Tensor = field(default_factory=stable_diffusion_alphas)

    @property
    def ends_in_noise(self) -> bool:
        """True: z_1 is noise."""
        return True

    @cached_property
    def _times(self) -> Tensor:
        alpha, sigma = self._on_cpu.sqrt(), (1 - self._on_cpu).sqrt()
        return (sigma / (alpha + sigma)).double()

    def time(self, timestep: Tensor) -> Tensor:
        """[N] float64 σ/(α + σ) of the variance-preserving process at these timesteps."""
        return move(self._times, timestep.device)[timestep]

    def timestep(self, t: Tensor) -> Tensor:
        """[N] the timesteps whose times are nearest to ``t``."""
        times = move(self._times, t.device)
        above = torch.searchsorted(times, t.double()).clamp(1, len(times) - 1)
        return torch.where(t - times[above - 1] <= times[above] - t, above - 1, above)

    def alpha_bar(self, t: Tensor) -> Tensor:
        """[N] (1 - t)² / ((1 - t)² + t²)."""
        signal, noise = (1 - t).square(), t.square()
        return signal / (signal + noise)

    def alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(1 - t, t); see the base class."""
        t = move(t, like.device)[:, None, None, None]
        return (1 - t).to(like.dtype), t.to(like.dtype)

    def rescaled(self, z: Tensor, t: Tensor) -> Tensor:
        """``z`` times √((1 - t)² + t²)."""
        t = move(t, z.device)[:, None, None, None]
        return ((1 - t).square() + t.square()).sqrt().to(z.dtype) * z

    def sampling_times(self, steps: int) -> Tensor:
        """From pure noise, t = 1, on at the times of a variance-preserving process's sampling."""
        times = self.time(_trailing(self.training_steps, steps))
        return torch.cat([times.new_ones(1), times[1:]])


def _trailing(training_steps: int, steps: int) -> Tensor:
    if not 1 <= steps <= training_steps:
        raise ValueError(f"DDIM needs between 1 and {training_steps} steps, got {steps}")
    return torch.tensor([round(training_steps * (steps - index) / steps) - 1 for index in range(steps)])
