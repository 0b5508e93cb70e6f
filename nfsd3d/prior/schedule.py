"""The forward diffusion process z_t = alpha z + sigma eps, its parametrisations, and DDIM.

``alpha`` is the square root of the cumulative product ᾱ, and sigma² = 1 - ᾱ (variance preserving, 2006.11239).
Timesteps are integers, 0 the least noisy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nfsd3d.device import move
from nfsd3d.guidance import guided
from nfsd3d.prior.base import predict_x0
from nfsd3d.shared_batch import draw

if TYPE_CHECKING:
    from nfsd3d.prior.base import Prior


@dataclass(frozen=True)
class NoiseSchedule:
    """The cumulative products ᾱ [T] of a model with T training steps, decreasing, in [0, 1].

    Methods take timesteps ``t`` [N] (int64), on the schedule's device or on the CPU, and return coefficients in the
    dtype of ``alphas_cumprod``, or results in the dtype of the latents [N,C,h,w].
    """

    alphas_cumprod: Tensor

    @property
    def training_steps(self) -> int:
        """T, the number of timesteps."""
        return self.alphas_cumprod.shape[0]

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """The same schedule on ``device``."""
        moved = NoiseSchedule(self.alphas_cumprod.to(device))
        object.__setattr__(moved, "_on_cpu", self._on_cpu)
        return moved

    @cached_property
    def _on_cpu(self) -> Tensor:
        return self.alphas_cumprod.cpu()

    @property
    def ends_in_noise(self) -> bool:
        """Whether alpha is 0 at the last timestep (zero terminal SNR, 2305.08891)."""
        return bool(self._on_cpu[-1] == 0)

    def alpha_bar(self, t: Tensor) -> Tensor:
        """[N] ᾱ at ``t``, on the device of ``t``; timesteps on the CPU need no host-device synchronisation."""
        return (self._on_cpu if t.device.type == "cpu" else self.alphas_cumprod)[t]

    def alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise coefficients (alpha, sigma), each [N,1,1,1], in the dtype and on the device of ``like``."""
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

    def eps_from_v(self, z_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """The noise that a velocity prediction v = alpha eps - sigma x0 implies (2202.00512)."""
        alpha, sigma = self.alpha_sigma(t, z_t)
        return sigma * z_t + alpha * v

    def x0_from_v(self, z_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """The clean latent that a velocity prediction implies, also at alpha = 0."""
        alpha, sigma = self.alpha_sigma(t, z_t)
        return alpha * z_t - sigma * v

    def sample_timesteps(self, rng: torch.Generator, count: int, t_min: float, t_max: float) -> Tensor:
        """[count] timesteps, uniform between two fractions of the training steps (both included), on the CPU.

        Raises:
            ValueError: unless 0 <= t_min <= t_max <= 1, up to rounding.
        """
        t_max = max(t_max, t_min) if t_max > t_min - 1e-9 else t_max
        if not 0 <= t_min <= t_max <= 1:
            raise ValueError(f"timesteps need 0 <= t_min <= t_max <= 1, got t_min={t_min}, t_max={t_max}")
        last = self.training_steps - 1
        low, high = (min(round(fraction * self.training_steps), last) for fraction in (t_min, t_max))
        return draw(partial(torch.randint, low, high + 1), (count,), rng)

    def ddim_step(self, z_t: Tensor, eps: Tensor, t: Tensor, t_next: Tensor | None) -> Tensor:
        """Latents moved deterministically from ``t`` to ``t_next`` [N] along ``eps`` (2010.02502, eq. 12, eta = 0).

        ``t_next`` may be noisier than ``t`` (inversion); None is the clean end, where the result is the predicted x0.
        """
        x0 = self.x0_from_eps(z_t, eps, t)
        return x0 if t_next is None else self.add_noise(x0, eps, t_next)


def ddim_timesteps(training_steps: int, steps: int) -> list[int]:
    """``steps`` timesteps from the noisiest down, evenly spaced, always starting at T - 1 (2305.08891, "trailing").

    Raises:
        ValueError: unless 1 <= steps <= training_steps.
    """
    if not 1 <= steps <= training_steps:
        raise ValueError(f"DDIM needs between 1 and {training_steps} steps, got {steps}")
    return [round(training_steps * (steps - index) / steps) - 1 for index in range(steps)]


@torch.no_grad()
def ddim_sample(
    prior: Prior,
    cond: Tensor,
    uncond: Tensor,
    *,
    guidance_scale: float,
    steps: int,
    rng: torch.Generator,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """[N,C,h,w] latents sampled with deterministic DDIM from Gaussian noise, one per embedding in ``cond`` [N,L,D].

    ``uncond`` is [1,L,D] or [N,L,D]. Both predictions come from one denoiser call with 2N batch entries; a guidance
    scale of exactly 1 needs only the conditional one. The starting noise comes from ``rng``, a generator on the CPU, so
    that a seed gives the same noise on every device. ``on_step`` is called with the number of finished steps.

    Raises:
        InputError: the schedule ends without signal (alpha = 0, zero terminal SNR), and the model predicts noise, from
            which nothing follows there.
    """
    count = cond.shape[0]
    z_t = move(torch.randn(count, *prior.latent_shape, generator=rng), prior.device)
    guidance = guidance_scale != 1
    context = torch.cat([uncond.expand(count, -1, -1), cond]) if guidance else cond
    times = [torch.full((count,), t, device=prior.device) for t in ddim_timesteps(prior.schedule.training_steps, steps)]
    for index, t in enumerate(times):
        t_next = times[index + 1] if index + 1 < steps else None
        # At alpha = 0 the noise is z_t itself, and does not show x0. Guidance is linear in x0 as it is in eps.
        without_signal = index == 0 and prior.schedule.ends_in_noise
        predict = partial(predict_x0, prior) if without_signal else prior.predict_eps
        if guidance:
            predicted_uncond, predicted_cond = predict(z_t.repeat(2, 1, 1, 1), t.repeat(2), context).chunk(2)
            predicted = guided(predicted_uncond, predicted_cond, guidance_scale)
        else:
            predicted = predict(z_t, t, context)
        if without_signal:
            z_t = predicted if t_next is None else prior.schedule.add_noise(predicted, z_t, t_next)
        else:
            z_t = prior.schedule.ddim_step(z_t, predicted, t, t_next)
        if on_step is not None:
            on_step(index + 1)
    return z_t
