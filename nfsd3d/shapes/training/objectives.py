"""What the UNet learns from clean latents: the noise of a diffusion process, or the velocity of a rectified flow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nfsd3d.shapes.training.common import TeacherSettings

LARGEST_WEIGHT = 20.0


@dataclass(frozen=True)
class Task:
    """Noised latents ``z_t`` [N,C,h,w], their ``timestep`` [N] as the UNet is given it, the ``target`` [N,C,h,w] that
    it shall predict, and the ``weight`` [N] of its squared error.
    """

    z_t: Tensor
    timestep: Tensor
    target: Tensor
    weight: Tensor


Objective = Callable[[Tensor, Tensor], Task]
"""(clean latents, Gaussian noise), both [N,C,h,w] -> a task with times from torch's global generator."""


def build_scheduler(objective: str = "epsilon") -> Any:
    """The scheduler of a model trained with one of :data:`OBJECTIVES`.

    For "epsilon" DDIM with Stable Diffusion's noise schedule, for "flow" Euler steps along straight paths.
    """
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    if objective == "flow":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def noise_prediction(settings: TeacherSettings) -> Objective:
    """The noise ε in z_t = √ᾱ z + √(1 - ᾱ) ε (2006.11239), weighted by `loss_weight`."""
    alphas_cumprod = build_scheduler("epsilon").alphas_cumprod

    def draw(z: Tensor, noise: Tensor) -> Task:
        t = torch.randint(1000, (len(z),), device=z.device)
        alpha_bar = alphas_cumprod.to(z.device)[t][:, None, None, None]
        z_t = alpha_bar.sqrt() * z + (1 - alpha_bar).sqrt() * noise
        return Task(z_t, t, noise, loss_weight(alpha_bar.flatten(), settings.snr_gamma, settings.snr_floor))

    return draw


def velocity_prediction(settings: TeacherSettings) -> Objective:
    """The velocity ε - z of z_t = (1 - t) z + t ε (rectified flow, 2209.03003).

    Times are uniform, then shifted towards noise by ``settings.flow_shift``, as in SD3 (2403.03206, eq. 23): the
    noisiest times determine object and view. The UNet is given 1000 t.
    """

    def draw(z: Tensor, noise: Tensor) -> Task:
        uniform = torch.rand(len(z), device=z.device)
        t = settings.flow_shift * uniform / (1 + (settings.flow_shift - 1) * uniform)
        time = t[:, None, None, None]
        return Task((1 - time) * z + time * noise, 1000 * t, noise - z, torch.ones_like(t))

    return draw


OBJECTIVES: dict[str, Callable[[TeacherSettings], Objective]] = {
    "epsilon": noise_prediction,
    "flow": velocity_prediction,
}
"""The objectives, by the value of ``--objective``."""


def loss_weight(alpha_bar: Tensor, gamma: float, floor: float) -> Tensor:
    """[B] weights of the noise's squared error: min(SNR, ``gamma``) + ``floor`` on the error of x0, capped.

    Min-SNR weighting (arXiv 2303.09556) is ``floor`` = 0. It gives the noisiest timesteps almost no weight. They
    determine object and view, and most steps of distillation use them.
    """
    snr = alpha_bar / (1 - alpha_bar)
    return ((snr.clamp(max=gamma) + floor) / snr).clamp(max=LARGEST_WEIGHT)
