"""From predictions to a gradient: the one guidance formula, the weightings, one batched call, the injection."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nfsd3d.distill.methods import Method


class Denoiser(Protocol):
    """What distillation needs of a prior."""

    def predict_eps(self, z_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """[N,C,h,w] predicted noise at timesteps ``t`` [N] given ``context`` [N,L,D]; no gradient."""
        ...


@dataclass(frozen=True)
class Predictions:
    """What the denoiser predicts for a batch of noised latents; every tensor but ``t`` is [B,C,h,w].

    ``noise`` is the noise that was added; ``cond``, ``uncond`` and ``neg`` the predictions given the prompt, the
    empty prompt and the negative prompt, 0 in the rows where the method does not need them; ``source_cond`` and
    ``source_uncond`` those for an edit's noised source, given its prompt and the empty one. ``t`` [B] are the
    timesteps, and ``threshold`` the timestep from which NFSD uses the negative prompt.
    """

    noise: Tensor
    cond: Tensor
    uncond: Tensor
    neg: Tensor
    t: Tensor
    threshold: int
    source_cond: Tensor | None = None
    source_uncond: Tensor | None = None


def guided(uncond: Tensor, cond: Tensor, s: float) -> Tensor:
    """Classifier-free guidance, ε_∅ + s(ε_y - ε_∅) (2207.12598): s = 0 unconditional, s = 1 conditional."""
    return uncond + s * (cond - uncond)


WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigma2": lambda alpha_bar: 1 - alpha_bar,
    "uniform": torch.ones_like,
    "sigma_over_alpha": lambda alpha_bar: ((1 - alpha_bar) / alpha_bar).sqrt(),
    "sigma_alpha": lambda alpha_bar: ((1 - alpha_bar) * alpha_bar).sqrt(),
}
"""w(t) as functions of ᾱ_t [B] -> [B]."""


def weight(name: str, alpha_bar: Tensor, like: Tensor) -> Tensor:
    """w(t) [B,1,1,1] of the weighting ``name`` at ᾱ_t [B], in the dtype and on the device of ``like``.

    Raises:
        KeyError: no such weighting in :data:`WEIGHTINGS`.
    """
    return WEIGHTINGS[name](alpha_bar).to(like)[:, None, None, None]


def threshold_step(fraction: float, training_steps: int) -> int:
    """The timestep at a fraction of a model's training steps: NFSD's 200 of 1,000 is the fraction 0.2."""
    return round(fraction * training_steps)


@torch.no_grad()
def predict_noise(
    denoiser: Denoiser,
    z_t: Tensor,
    t: Tensor,
    contexts: Mapping[str, Tensor],
    method: Method,
    *,
    noise: Tensor,
    threshold: int,
    source_z_t: Tensor | None = None,
) -> Predictions:
    """The predictions that ``method`` reads, from one call of the denoiser on exactly the rows it needs.

    Args:
        denoiser: the prior.
        z_t: [B,C,h,w] noised latents.
        t: [B] int64 timesteps, best on the CPU: which rows are needed is decided there, and a tensor on another
            device makes it wait.
        contexts: for every branch, text embeddings [B,L,D].
        method: whose ``branches`` and ``active`` rows are evaluated.
        noise: [B,C,h,w] the noise in ``z_t``.
        threshold: NFSD's timestep, see :func:`threshold_step`.
        source_z_t: [B,C,h,w] the source's noised latents, for branches whose names begin with "source".

    Raises:
        KeyError: ``contexts`` lacks a branch of the method.
    """
    steps = t.cpu()
    rows = [method.rows(branch, steps, threshold).to(z_t.device) for branch in method.branches]
    every = torch.cat(rows)
    t = t.to(z_t.device)
    latents = {branch: source_z_t if branch.startswith("source") else z_t for branch in method.branches}
    noised = torch.cat([latents[branch][index] for branch, index in zip(method.branches, rows, strict=True)])  # type: ignore[index]
    context = torch.cat([contexts[branch][index] for branch, index in zip(method.branches, rows, strict=True)])
    eps = denoiser.predict_eps(noised, t[every], context)
    predicted = {name: torch.zeros_like(z_t) for name in ("cond", "uncond", "neg", "source_cond", "source_uncond")}
    for branch, index, part in zip(method.branches, rows, eps.split([len(index) for index in rows]), strict=True):
        predicted[branch][index] = part
    return Predictions(noise=noise, **predicted, t=t, threshold=threshold)


def inject_gradient(z: Tensor, grad: Tensor) -> Tensor:
    """A scalar whose gradient at ``z`` [B,...] is ``grad`` / B: summed over the latent, averaged over the batch.

    Its value means nothing. It is not the popular ``mse(z, (z - grad).detach())``, whose difference rounds small
    gradients to 0 in half precision.

    Raises:
        ValueError: the shapes differ (broadcasting would change the scale).
    """
    if z.shape != grad.shape:
        raise ValueError(f"gradient of shape {tuple(grad.shape)} for latents of shape {tuple(z.shape)}")
    return (z * grad.detach()).sum() / z.shape[0]
