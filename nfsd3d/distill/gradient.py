"""From noise predictions to a gradient on the latents: one batched denoiser call, Perp-Neg, w(t), injection."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nfsd3d.device import move
from nfsd3d.distill.types import PREDICTIONS, Denoiser, Predictions

if TYPE_CHECKING:
    from nfsd3d.context import Context
    from nfsd3d.distill.methods import Method


def perp_neg(delta_c: Tensor, against: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Perp-Neg's condition direction, δ_C + Σ_i w_i (δ_i - (δ_i·δ_C / δ_C·δ_C) δ_C) (2304.04968).

    ``delta_c`` [B,C,h,w] is ε_y - ε_∅; ``against`` the same difference for each prompt to move away from; ``weights``
    [len(against),B] are not positive. Only the part of δ_i perpendicular to δ_C counts.
    """
    size = delta_c.square().sum((1, 2, 3), keepdim=True)
    total = delta_c
    for delta, weight in zip(against, weights, strict=True):
        along = (delta * delta_c).sum((1, 2, 3), keepdim=True) / size.clamp(min=torch.finfo(size.dtype).tiny)
        total = total + move(weight, delta.device).to(delta.dtype)[:, None, None, None] * (delta - along * delta_c)
    return total


WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigma2": lambda alpha_bar: 1 - alpha_bar,
    "uniform": torch.ones_like,
    "sigma_over_alpha": lambda alpha_bar: ((1 - alpha_bar) / alpha_bar).sqrt(),
    "sigma_alpha": lambda alpha_bar: ((1 - alpha_bar) * alpha_bar).sqrt(),
    "velocity": lambda alpha_bar: 1 + ((1 - alpha_bar) / alpha_bar).sqrt(),
}
"""w(t) as functions of ᾱ_t [B] -> [B]; "velocity" is 1/(1 - t) at a rectified flow's time t of equal SNR."""


def weight(name: str, alpha_bar: Tensor, like: Tensor) -> Tensor:
    """w(t) [B,1,1,1] of the weighting ``name`` at ᾱ_t [B], in the dtype and on the device of ``like``.

    Raises:
        KeyError: no such weighting in :data:`WEIGHTINGS`.
    """
    return move(WEIGHTINGS[name](alpha_bar), like.device).to(like.dtype)[:, None, None, None]


def threshold_step(fraction: float, training_steps: int) -> int:
    """The timestep at a fraction of a model's training steps: NFSD's 200 of 1,000 is the fraction 0.2."""
    return round(fraction * training_steps)


@torch.no_grad()
def predict_noise(
    denoiser: Denoiser,
    z_t: Tensor,
    t: Tensor,
    contexts: Mapping[str, Context],
    method: Method,
    *,
    noise: Tensor,
    threshold: float,
    source: Tensor | None = None,
    lora: Denoiser | None = None,
    view_weights: Tensor | None = None,
    later: tuple[Tensor, Tensor] | None = None,
    offset: Tensor | float = 0.0,
) -> Predictions:
    """The predictions that ``method`` reads, from one call of each network on exactly the batch entries it needs.

    Args:
        denoiser: the prior.
        z_t: [B,C,h,w] noised latents.
        t: [B] times, best on the CPU: they decide which batch entries are needed, and reading them from another device
            is a host-device synchronisation.
        contexts: the prompts' conditions [B] by the name of the prompt.
        method: lists the predictions, and where each is active.
        noise: [B,C,h,w] the noise in ``z_t``.
        threshold: NFSD's timestep, see :func:`threshold_step`, as a time.
        source: [B,C,h,w] the source's latents with the same noise at the same ``t``, for predictions ``source_...``.
        lora: VSD's LoRA network, for the prediction ``lora``.
        view_weights: [2,B] Perp-Neg's weights, on the CPU: each condition direction is replaced by :func:`perp_neg`
            against the prompts ``cond_against_0`` and ``cond_against_1`` (``source_cond_against_...``) in batch entries
            with a weight other than 0. Does not apply to a method that gives ``cond`` another prompt.
        later: [B,C,h,w] the latents at noisier times [B], for the prediction ``later``.
        offset: of `Predictions`.

    Raises:
        KeyError: ``contexts`` lacks a prompt of the method.
        ValueError: the method needs a source, later latents or a LoRA network that was not given.
    """
    steps, t = t.cpu(), move(t, z_t.device)
    entries = {name: method.entries(name, steps, threshold) for name in method.predictions}
    if view_weights is not None:
        for cond, _ in method.condition_pairs:
            entries |= {f"{cond}_against_{i}": row.nonzero().squeeze(1) for i, row in enumerate(view_weights)}
    z_later, t_later = (None, t) if later is None else (later[0], move(later[1], z_t.device))
    inputs = {}
    for name, indices in entries.items():
        latents, times = (z_later, t_later) if name == "later" else (z_t, t)
        latents = source if name.startswith("source_") else latents
        inputs[name] = _Input(latents, times, contexts[method.prompt(name)], indices)
    of_lora = {"lora": inputs.pop("lora")} if "lora" in inputs else {}

    eps = _predict(denoiser, inputs) | _predict(lora, of_lora)
    if view_weights is not None:
        for cond, uncond in method.condition_pairs:
            against = [eps.pop(f"{cond}_against_{i}") - eps[uncond] for i in range(len(view_weights))]
            eps[cond] = eps[uncond] + perp_neg(eps[cond] - eps[uncond], against, view_weights)
    unlisted = torch.full_like(z_t, torch.nan)
    return Predictions(
        noise=noise,
        **{name: eps.get(name, unlisted) for name in PREDICTIONS},
        t=t,
        threshold=threshold,
        offset=offset,
    )


@dataclass(frozen=True)
class _Input:
    """Input of one prediction: batch entries ``indices`` [n] of latents [B,C,h,w] at times [B] given conditions [B]."""

    latents: Tensor | None
    t: Tensor
    context: Context
    indices: Tensor


def _predict(network: Denoiser | None, inputs: Mapping[str, _Input]) -> dict[str, Tensor]:
    """The predictions [B,C,h,w] by name from one call of the network, 0 in batch entries that are left out."""
    if not inputs:
        return {}
    parts = []
    for name, given in inputs.items():
        if network is None or given.latents is None:
            raise ValueError(f"the method's prediction {name!r} needs a {name.split('_')[0]}, which was not given")
        at = move(given.indices, given.latents.device)
        parts.append((name, given.latents, at, given.t[at], given.context[at]))
    assert network is not None
    eps = network.predict_eps(
        torch.cat([latents[at] for _, latents, at, *_ in parts]),
        torch.cat([t for *_, t, _ in parts]),
        parts[0][-1].joined([context for *_, context in parts[1:]]),
    )
    split = eps.split([len(at) for _, _, at, *_ in parts])
    return {
        name: torch.zeros_like(latents).index_copy(0, at, part)
        for (name, latents, at, *_), part in zip(parts, split, strict=True)
    }


def inject_gradient(z: Tensor, grad: Tensor) -> Tensor:
    """A scalar whose gradient at ``z`` [B,...] is ``grad`` / B: summed over the latent, averaged over the batch.

    Its value has no meaning. The popular ``mse(z, (z - grad).detach())`` is not used, because its difference rounds
    small gradients to 0 in half precision.

    Raises:
        ValueError: the shapes differ (broadcasting would change the scale).
    """
    if z.shape != grad.shape:
        raise ValueError(f"gradient of shape {tuple(grad.shape)} for latents of shape {tuple(z.shape)}")
    return (z * grad.detach()).sum() / z.shape[0]
