"""What a denoiser may predict, and the noise and the clean latent that follow, by diffusers' names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from nfsd3d.prior.schedule import NoiseSchedule

Convert = Callable[[NoiseSchedule, Tensor, Tensor, Tensor], Tensor]
"""(schedule, z_t [N,C,h,w], the denoiser's output [N,C,h,w], times [N]) -> [N,C,h,w]."""


@dataclass(frozen=True)
class Parametrization:
    """The conversions of a denoiser's output to noise and to clean latents."""

    to_eps: Convert
    to_x0: Convert


def _eps_from_v(schedule: NoiseSchedule, z_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """The noise that v = alpha eps - sigma x0 implies (2202.00512)."""
    alpha, sigma = schedule.alpha_sigma(t, z_t)
    return sigma * z_t + alpha * v


def _x0_from_v(schedule: NoiseSchedule, z_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """The clean latent that v implies, also at alpha = 0."""
    alpha, sigma = schedule.alpha_sigma(t, z_t)
    return alpha * z_t - sigma * v


def _eps_from_velocity(schedule: NoiseSchedule, z_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """The noise that a rectified flow's velocity eps - x0 implies: z_t + (1 - t) v."""
    alpha, _ = schedule.alpha_sigma(t, z_t)
    return z_t + alpha * velocity


def _x0_from_velocity(schedule: NoiseSchedule, z_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """The clean latent that a rectified flow's velocity implies: z_t - t v, also at t = 1."""
    _, sigma = schedule.alpha_sigma(t, z_t)
    return z_t - sigma * velocity


PARAMETRIZATIONS: dict[str, Parametrization] = {
    "epsilon": Parametrization(
        lambda schedule, z_t, output, t: output, lambda schedule, z_t, output, t: schedule.x0_from_eps(z_t, output, t)
    ),
    "v_prediction": Parametrization(_eps_from_v, _x0_from_v),
    "sample": Parametrization(
        lambda schedule, z_t, output, t: schedule.eps_from_x0(z_t, output, t), lambda schedule, z_t, output, t: output
    ),
    "flow": Parametrization(_eps_from_velocity, _x0_from_velocity),
}
"""The parametrisations by prediction type; "flow" is a rectified flow's, the others those of diffusion models."""
