"""Deterministic sampling from a prior: DDIM, which on a rectified flow is Euler's method."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nfsd3d.device import move
from nfsd3d.guidance import guided
from nfsd3d.prior.base import predict_x0

if TYPE_CHECKING:
    from nfsd3d.context import Context
    from nfsd3d.prior.base import Prior


@torch.no_grad()
def ddim_sample(
    prior: Prior,
    cond: Context,
    uncond: Context,
    *,
    guidance_scale: float,
    steps: int,
    rng: torch.Generator,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """[N,C,h,w] latents sampled with deterministic DDIM from Gaussian noise, one per prompt of ``cond`` [N].

    ``uncond`` has one prompt or N. Both predictions come from one denoiser call with 2N batch entries; a guidance
    scale of exactly 1 needs only the conditional one. The starting noise comes from ``rng``, a generator on the CPU, so
    that a seed gives the same noise on every device. ``on_step`` is called with the number of finished steps.

    Raises:
        InputError: the schedule ends without signal (alpha = 0, zero terminal SNR), and the model predicts noise, from
            which nothing follows there.
    """
    count, schedule = len(cond), prior.schedule
    z_t = move(torch.randn(count, *prior.latent_shape, generator=rng), prior.device)
    guidance = guidance_scale != 1
    context = uncond.expand(count).joined([cond]) if guidance else cond
    times = [t.expand(count).to(prior.device) for t in schedule.sampling_times(steps)]
    for index, t in enumerate(times):
        t_next = times[index + 1] if index + 1 < steps else None
        # At alpha = 0 the noise is z_t itself, and does not show x0. Guidance is linear in x0 as it is in eps.
        without_signal = index == 0 and schedule.ends_in_noise
        predict = partial(predict_x0, prior) if without_signal else prior.predict_eps
        if guidance:
            predicted_uncond, predicted_cond = predict(z_t.repeat(2, 1, 1, 1), t.repeat(2), context).chunk(2)
            predicted = guided(predicted_uncond, predicted_cond, guidance_scale)
        else:
            predicted = predict(z_t, t, context)
        if without_signal:
            z_t = predicted if t_next is None else schedule.add_noise(predicted, z_t, t_next)
        else:
            z_t = schedule.ddim_step(z_t, predicted, t, t_next)
        if on_step is not None:
            on_step(index + 1)
    return z_t
