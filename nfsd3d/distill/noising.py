"""How methods noise latents: with random noise, or with the teacher's own, predicted or by DDIM inversion.

Importing this file does not import torch: its functions do, so that the table of methods stays cheap to read.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from nfsd3d.guidance import guided

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from nfsd3d.context import Context
    from nfsd3d.distill.types import DiffusionModel, ForwardProcess


@dataclass(frozen=True)
class RandomNoise:
    """z_t = alpha z + sigma ε with Gaussian ε, as diffusion models are trained."""

    batch_entries: ClassVar[int] = 0

    def nfe(self, t: Tensor, training_steps: int) -> Tensor:
        """[N] zeros: the denoiser is not called."""
        return t.new_zeros(t.shape)

    def __call__(
        self, model: DiffusionModel, z: Tensor, t: Tensor, contexts: Mapping[str, Context], rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """(z_t, ε)."""
        import torch

        from nfsd3d.device import move
        from nfsd3d.shared_batch import draw

        noise = move(draw(torch.randn, z.shape, rng), z.device)
        return model.schedule.add_noise(z, noise, t), noise


@dataclass(frozen=True)
class IntervalNoise:
    """DDIM inversion of interval score matching (LucidDreamer, 2311.11284, algorithm 1).

    DDIM without guidance takes z, as the latent at timestep 0, in strides to s = t - interval, and in one step on to t.
    The last step's prediction ε_∅(z_s, s) takes the place of the noise. ``stride`` and ``interval`` are fractions of
    the training steps (the paper: 200 and 50 of 1,000).
    """

    stride: float = 0.2
    interval: float = 0.05

    batch_entries: ClassVar[int] = 1

    def nfe(self, t: Tensor, training_steps: int) -> Tensor:
        """[N] ⌈s/stride⌉ + 1."""
        s = (t - _steps(self.interval, training_steps)).clamp(min=0)
        return -(-s // _steps(self.stride, training_steps)) + 1

    def __call__(
        self, model: DiffusionModel, z: Tensor, t: Tensor, contexts: Mapping[str, Context], rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """(z_t, ε_∅(z_s, s)); nothing is drawn from ``rng``."""
        import torch

        def predict(z_t: Tensor, t: Tensor, entries: Tensor) -> Tensor:
            return model.predict_eps(z_t, t, contexts["uncond"][entries])

        schedule = model.schedule
        steps = schedule.timestep(t.cpu())
        s = (steps - _steps(self.interval, schedule.training_steps)).clamp(min=0)
        stride = _steps(self.stride, schedule.training_steps)
        times = [s.clamp(max=index * stride) for index in range(-(-int(s.max()) // stride) + 1)]
        with torch.no_grad():
            z_s = ddim_invert(schedule, z, times, predict)
            eps = predict(z_s, schedule.time(s), torch.arange(len(z), device=z.device))
            return schedule.ddim_step(z_s, eps, schedule.time(s), schedule.time(steps)), eps


@dataclass(frozen=True)
class InversionNoise:
    """DDIM inversion of score distillation via inversion (SDI, 2405.15891).

    DDIM with a negative guidance scale takes z, as the latent at timestep 0, along the steps of a regular ``grid`` over
    the whole range that lie below t, and then to a random t' less than one grid step beyond t. There
    κ = (z_t' - α' z) / σ' is the noise that leads back to z, and z_t is z with the noise κ.

    ``guidance_scale`` is the authors' -7.5 in this package's convention: theirs counts from the conditional prediction.
    ``eta`` scales the noise that each inversion step adds. The authors' code takes one more step, from a timestep
    before the first.
    """

    grid: int = 10
    guidance_scale: float = -6.5
    eta: float = 0.3

    batch_entries: ClassVar[int] = 2

    def nfe(self, t: Tensor, training_steps: int) -> Tensor:
        """[N] 2⌈t/stride⌉, where stride is one step of the grid."""
        return 2 * -(-t.clamp(min=1) // _steps(1 / self.grid, training_steps))

    def __call__(
        self, model: DiffusionModel, z: Tensor, t: Tensor, contexts: Mapping[str, Context], rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """(z_t, κ)."""
        import torch

        from nfsd3d.shared_batch import draw

        def predict(z_t: Tensor, t: Tensor, entries: Tensor) -> Tensor:
            both = contexts["uncond"][entries].joined([contexts["cond"][entries]])
            uncond, cond = model.predict_eps(z_t.repeat(2, 1, 1, 1), t.repeat(2), both).chunk(2)
            return guided(uncond, cond, self.guidance_scale)

        schedule = model.schedule
        steps = schedule.timestep(t.cpu())
        stride = _steps(1 / self.grid, schedule.training_steps)
        end = (steps + draw(partial(torch.randint, 0, stride), steps.shape, rng)).clamp(1, schedule.training_steps - 1)
        last = -(-int(steps.max().clamp(min=1)) // stride)
        times = [torch.where(steps.clamp(min=1) > index * stride, index * stride, end) for index in range(last + 1)]
        with torch.no_grad():
            inverted = ddim_invert(schedule, z, times, predict, eta=self.eta, rng=rng)
            kappa = schedule.eps_from_x0(inverted, z, schedule.time(end))
            return schedule.add_noise(z, kappa, t), kappa


@dataclass(frozen=True)
class PredictedNoise:
    """The teacher's own noise (RFDS-Rev, 2406.03293): z_t with random noise, then again with ε̂(z_t; y) in its place.

    In a rectified flow's terms one Euler step of length 1 - t takes the noise ε to ε + (1 - t)(v + z - ε), which is ε̂.
    The authors' code also multiplies the loss by a random number between 0 and 1 that does not depend on t.
    """

    batch_entries: ClassVar[int] = 1

    def nfe(self, t: Tensor, training_steps: int) -> Tensor:
        """[N] ones."""
        return t.new_ones(t.shape)

    def __call__(
        self, model: DiffusionModel, z: Tensor, t: Tensor, contexts: Mapping[str, Context], rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """(z_t, ε̂)."""
        z_t, _ = RandomNoise()(model, z, t, contexts, rng)
        predicted = model.predict_eps(z_t, t, contexts["cond"])
        return model.schedule.add_noise(z, predicted, t), predicted


@dataclass(frozen=True)
class CoupledNoise:
    """The noise at the end of the teacher's own path from z (unique couple matching, FlowDreamer, 2408.05008).

    Euler's method takes z along a rectified flow from t = 0 to 1 in equal ``steps``, given the prompt without guidance.
    The end is the last step's prediction of the noise. On a diffusion model the steps are those of equal
    signal-to-noise ratio. z counts as the latent at timestep 0. The authors' code distils with random noise in its
    first 1,800 steps.
    """

    steps: int = 3

    batch_entries: ClassVar[int] = 1

    def nfe(self, t: Tensor, training_steps: int) -> Tensor:
        """[N] the number of steps."""
        return t.new_full(t.shape, self.steps)

    def __call__(
        self, model: DiffusionModel, z: Tensor, t: Tensor, contexts: Mapping[str, Context], rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """(z_t, ε̂ at the last step's beginning); nothing is drawn from ``rng``."""
        import torch

        def predict(z_t: Tensor, t: Tensor, entries: Tensor) -> Tensor:
            return model.predict_eps(z_t, t, contexts["cond"][entries])

        schedule = model.schedule
        alpha_bar = schedule.alpha_bar(schedule.time(torch.arange(schedule.training_steps)))
        flow_times = (1 - alpha_bar).sqrt() / (alpha_bar.sqrt() + (1 - alpha_bar).sqrt())
        begins = [int((flow_times - step / self.steps).abs().argmin()) for step in range(self.steps)]
        times = [torch.full(t.shape, begin) for begin in begins]
        with torch.no_grad():
            z_s = ddim_invert(schedule, z, times, predict)
            noise = predict(z_s, schedule.time(times[-1]), torch.arange(len(z), device=z.device))
        return schedule.add_noise(z, noise, t), noise


@dataclass(frozen=True)
class LaterTimes:
    """Noisier times t + Δ, Δ uniform between 0 and ``share`` of t - ``start`` (ScaleDreamer, 2407.02040).

    ``start`` is a fraction of the timesteps: the authors' least noisy timestep, at the end of their annealing.
    """

    share: float = 0.1
    start: float = 0.02

    def __call__(self, schedule: ForwardProcess, t: Tensor, rng: torch.Generator) -> Tensor:
        """[N] times, on the CPU, for times ``t`` [N]."""
        import torch

        from nfsd3d.shared_batch import draw

        step, last = schedule.timestep(t.cpu()), schedule.training_steps - 1
        beyond = (step - round(self.start * schedule.training_steps)).clamp(min=0)
        shift = (self.share * beyond * draw(torch.rand, step.shape, rng)).long()
        return schedule.time((step + shift).clamp(max=last))


def ddim_invert(
    schedule: ForwardProcess,
    z: Tensor,
    times: Sequence[Tensor],
    predict: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    eta: float = 0.0,
    rng: torch.Generator | None = None,
) -> Tensor:
    """Latents [N,C,h,w] moved against the direction of sampling, along ``times``.

    Args:
        schedule: the model's forward process.
        z: [N,C,h,w] the latents at the first of ``times``, at the scale of clean ones.
        times: timesteps [N] on the CPU, which never decrease. A latent whose timestep stays costs nothing.
        predict: (some latents, their times, their indices in ``z``) -> the noise predicted there.
        eta: each step adds noise of this many times DDPM's standard deviation (2010.02502, eq. 16).
        rng: source of that noise, a generator on the CPU.
    """
    import torch

    from nfsd3d.device import move
    from nfsd3d.shared_batch import draw

    z = schedule.rescaled(z, schedule.time(times[0]))
    for before, after in itertools.pairwise(times):
        moving = (before < after).nonzero().squeeze(1)
        if len(moving) == 0:
            continue
        at, t, t_next = move(moving, z.device), schedule.time(before[moving]), schedule.time(after[moving])
        moved = schedule.ddim_step(z[at], predict(z[at], t, at), t, t_next)
        if eta:
            (_, sigma), (_, sigma_next) = schedule.unit_alpha_sigma(t, z), schedule.unit_alpha_sigma(t_next, z)
            signal = schedule.alpha_bar(t_next) / schedule.alpha_bar(t)
            signal = move(signal, z.device).to(z.dtype)[:, None, None, None]
            jump = schedule.rescaled(move(draw(torch.randn, z.shape, rng)[moving], z.device).to(z.dtype), t_next)
            moved = moved + eta * sigma / sigma_next * (1 - signal).sqrt() * jump
        z = z.index_copy(0, at, moved)
    return z


def _steps(fraction: float, training_steps: int) -> int:
    """A fraction of the training steps as a number of timesteps, at least one."""
    return max(1, round(fraction * training_steps))
