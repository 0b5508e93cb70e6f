"""The forward diffusion process z_t = alpha z + sigma eps, its parametrisations, and DDIM.

``alpha`` is the square root of the cumulative product ᾱ, and sigma² = 1 - ᾱ (variance preserving, 2006.11239).
Timesteps are integers, 0 the least noisy.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nfsd3d.device import move
from nfsd3d.distill.gradient import guided

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

    def alpha_bar(self, t: Tensor) -> Tensor:
        """[N] ᾱ at ``t``, on the device of ``t``: timesteps on the CPU need not wait for a GPU."""
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
        """The clean latent that a velocity prediction implies."""
        alpha, sigma = self.alpha_sigma(t, z_t)
        return alpha * z_t - sigma * v

    def v_from_eps(self, z_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The velocity of a noise prediction, v = (eps - sigma z_t) / alpha."""
        alpha, sigma = self.alpha_sigma(t, z_t)
        return (eps - sigma * z_t) / alpha

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
        return torch.randint(low, high + 1, (count,), generator=rng)


def ddim_step(schedule: NoiseSchedule, z_t: Tensor, eps: Tensor, t: Tensor, t_next: Tensor | None) -> Tensor:
    """Latents moved deterministically from ``t`` to ``t_next`` [N] along ``eps`` (2010.02502, eq. 12 with eta = 0).

    ``t_next`` may be noisier than ``t`` (inversion); None is the clean end, where the result is the predicted x0.
    """
    x0 = schedule.x0_from_eps(z_t, eps, t)
    return x0 if t_next is None else schedule.add_noise(x0, eps, t_next)


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
    """[N,C,h,w] latents drawn with deterministic DDIM from Gaussian noise, one per row of ``cond`` [N,L,D].

    ``uncond`` is [1,L,D] or [N,L,D]. Both branches go through the denoiser in one call of 2N rows; a guidance scale
    of exactly 1 needs only the conditional one. The starting noise comes from ``rng``, a generator on the CPU, so
    that a seed means the same on every device. ``on_step`` hears the number of finished steps.
    """
    count = cond.shape[0]
    z_t = move(torch.randn(count, *prior.latent_shape, generator=rng), prior.device)
    guidance = guidance_scale != 1
    context = torch.cat([uncond.expand(count, -1, -1), cond]) if guidance else cond
    times = [torch.full((count,), t, device=prior.device) for t in ddim_timesteps(prior.schedule.training_steps, steps)]
    for index, t in enumerate(times):
        if guidance:
            eps_uncond, eps_cond = prior.predict_eps(z_t.repeat(2, 1, 1, 1), t.repeat(2), context).chunk(2)
            eps = guided(eps_uncond, eps_cond, guidance_scale)
        else:
            eps = prior.predict_eps(z_t, t, context)
        z_t = ddim_step(prior.schedule, z_t, eps, t, times[index + 1] if index + 1 < steps else None)
        if on_step is not None:
            on_step(index + 1)
    return z_t


@torch.no_grad()
def ddim_invert(
    schedule: NoiseSchedule,
    z: Tensor,
    times: Sequence[Tensor],
    predict: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    eta: float = 0.0,
    rng: torch.Generator | None = None,
) -> Tensor:
    """Latents [N,C,h,w] taken against the direction of sampling, along ``times``.

    Args:
        schedule: the prior's.
        z: [N,C,h,w] the latents at the first of ``times``.
        times: timesteps [N] on the CPU, which never decrease. A row whose timestep stays costs nothing.
        predict: (latents of some rows, their timesteps, the rows' indices) -> the noise predicted there.
        eta: in each step, noise of this many times DDPM's standard deviation (2010.02502, eq. 16) is added.
        rng: where that noise comes from, a generator on the CPU.
    """
    for t, t_next in itertools.pairwise(times):
        rows = (t < t_next).nonzero().squeeze(1)
        if len(rows) == 0:
            continue
        at, t, t_next = move(rows, z.device), t[rows], t_next[rows]
        moved = ddim_step(schedule, z[at], predict(z[at], t, at), t, t_next)
        if eta:
            (_, sigma), (_, sigma_next) = schedule.alpha_sigma(t, z), schedule.alpha_sigma(t_next, z)
            signal = schedule.alpha_bar(t_next) / schedule.alpha_bar(t)
            signal = move(signal, z.device).to(z.dtype)[:, None, None, None]
            jump = move(torch.randn(z.shape, generator=rng)[rows], z.device).to(z.dtype)
            moved = moved + eta * sigma / sigma_next * (1 - signal).sqrt() * jump
        z = z.index_copy(0, at, moved)
    return z


def random_noise(
    prior: Prior, z: Tensor, t: Tensor, contexts: Mapping[str, Tensor], rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(z_t, noise) with noise from ``rng``, as a diffusion model is trained."""
    noise = move(torch.randn(z.shape, generator=rng), z.device)
    return prior.schedule.add_noise(z, noise, t), noise


@torch.no_grad()
def interval_noise(
    prior: Prior,
    z: Tensor,
    t: Tensor,
    contexts: Mapping[str, Tensor],
    rng: torch.Generator,
    *,
    stride: float = 0.2,
    interval: float = 0.05,
) -> tuple[Tensor, Tensor]:
    """(z_t, ε_∅(z_s, s)) of interval score matching (LucidDreamer, 2311.11284, algorithm 1).

    DDIM without guidance takes z, which counts as the latent at timestep 0, in strides to s = t - interval, and one
    step on to t. The prediction of that last step is what takes the place of the noise. ``stride`` and ``interval`` are
    fractions of the training steps (the paper: 200 and 50 of 1,000). Costs ⌈s/stride⌉ + 1 evaluations of each latent.
    """

    def predict(z_t: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        return prior.predict_eps(z_t, t, contexts["uncond"][rows])

    steps = t.cpu()
    s = (steps - _fraction(prior.schedule, interval)).clamp(min=0)
    every = _fraction(prior.schedule, stride)
    times = [s.clamp(max=index * every) for index in range(-(-int(s.max()) // every) + 1)]
    z_s = ddim_invert(prior.schedule, z, times, predict)
    eps = predict(z_s, s, torch.arange(len(z), device=z.device))
    return ddim_step(prior.schedule, z_s, eps, s, steps), eps


@torch.no_grad()
def inverted_noise(
    prior: Prior,
    z: Tensor,
    t: Tensor,
    contexts: Mapping[str, Tensor],
    rng: torch.Generator,
    *,
    grid: int = 10,
    guidance_scale: float = -6.5,
    eta: float = 0.3,
) -> tuple[Tensor, Tensor]:
    """(z_t, κ) of score distillation via inversion: κ is the noise that leads back to z (2405.15891).

    DDIM with a negative guidance scale takes z, which counts as the latent at timestep 0, along the ``grid`` steps of
    the whole range that lie below t, and then to a random t' less than one grid step beyond t. There κ = (z_t' - α' z)
    / σ', and z_t is z with the noise κ. The authors' scale of -7.5 is -6.5 here: theirs counts from the conditional
    prediction. Costs 2⌈t/100⌉ evaluations of each latent with 1,000 training steps (the authors' code takes one more
    step, from a timestep before the first).
    """

    def predict(z_t: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        both = torch.cat([contexts["uncond"][rows], contexts["cond"][rows]])
        uncond, cond = prior.predict_eps(z_t.repeat(2, 1, 1, 1), t.repeat(2), both).chunk(2)
        return guided(uncond, cond, guidance_scale)

    schedule, steps = prior.schedule, t.cpu()
    every = _fraction(schedule, 1 / grid)
    end = (steps + torch.randint(0, every, steps.shape, generator=rng)).clamp(1, schedule.training_steps - 1)
    last = -(-int(steps.max().clamp(min=1)) // every)
    times = [torch.where(steps.clamp(min=1) > index * every, index * every, end) for index in range(last + 1)]
    kappa = schedule.eps_from_x0(ddim_invert(schedule, z, times, predict, eta=eta, rng=rng), z, end)
    return schedule.add_noise(z, kappa, t), kappa


Noising = Callable[["Prior", Tensor, Tensor, Mapping[str, Tensor], torch.Generator], tuple[Tensor, Tensor]]
"""(prior, latents z [B,C,h,w], timesteps t [B], text embeddings by the name of the prompt, rng) -> z_t, and the noise
or what takes its place; both [B,C,h,w] without gradient."""

NOISINGS: dict[str, Noising] = {"random": random_noise, "interval": interval_noise, "inversion": inverted_noise}
"""How a method noises its latents, by the name in its row of `nfsd3d.distill.methods.METHODS`."""

NOISING_BRANCHES = {"random": 0, "interval": 1, "inversion": 2}
"""How many rows the denoiser is given in one call of a noising for each latent that the call moves, by its name."""


def _fraction(schedule: NoiseSchedule, fraction: float) -> int:
    """So many timesteps, at least one."""
    return max(1, round(fraction * schedule.training_steps))
