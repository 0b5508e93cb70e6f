"""From predictions to a gradient: the one guidance formula, the weightings, one batched call, the injection."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from nfsd3d.device import move

if TYPE_CHECKING:
    from nfsd3d.distill.methods import Method


class Denoiser(Protocol):
    """What distillation needs of a prior."""

    def predict_eps(self, z_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """[N,C,h,w] predicted noise at timesteps ``t`` [N] given ``context`` [N,L,D]; no gradient."""
        ...


@dataclass(frozen=True)
class Predictions:
    """What the networks predict for a batch of noised latents; every tensor but ``t`` is [B,C,h,w].

    ``noise`` is the noise that was added, or what a method takes in its place. ``cond``, ``uncond`` and ``neg`` are the
    predictions given the prompt, the empty prompt and the negative prompt; ``source_cond`` and ``source_uncond`` those
    for the noised source given its own prompt and the empty one; ``lora`` that of VSD's second network. A branch
    is 0 in the rows where the method does not need it, and not a number where the method does not list it. ``t`` [B]
    are the timesteps, and ``threshold`` the timestep from which NFSD uses the negative prompt.
    """

    noise: Tensor
    cond: Tensor
    uncond: Tensor
    neg: Tensor
    source_cond: Tensor
    source_uncond: Tensor
    lora: Tensor
    t: Tensor
    threshold: int


BRANCHES = ("cond", "uncond", "neg", "source_cond", "source_uncond", "lora")
"""The fields of :class:`Predictions` that a network fills."""


def guided(uncond: Tensor, cond: Tensor, s: float) -> Tensor:
    """Classifier-free guidance, ε_∅ + s(ε_y - ε_∅) (2207.12598): s = 0 unconditional, s = 1 conditional."""
    return uncond + s * (cond - uncond)


def perp_neg(delta_c: Tensor, against: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Perp-Neg's condition direction, δ_C + Σ_i w_i (δ_i - (δ_i·δ_C / δ_C·δ_C) δ_C) (2304.04968).

    ``delta_c`` [B,C,h,w] is ε_y - ε_∅; ``against`` the same difference for each prompt to move away from; ``weights``
    [len(against),B] are not positive. What an unwanted prompt has in common with the wanted one is left alone.
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
}
"""w(t) as functions of ᾱ_t [B] -> [B]."""


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
    contexts: Mapping[str, Tensor],
    method: Method,
    *,
    noise: Tensor,
    threshold: int,
    source: Tensor | None = None,
    lora: Denoiser | None = None,
    view_weights: Tensor | None = None,
) -> Predictions:
    """The predictions that ``method`` reads, from one call of each network on exactly the rows it needs.

    Args:
        denoiser: the prior.
        z_t: [B,C,h,w] noised latents.
        t: [B] int64 timesteps, best on the CPU: which rows are needed is decided there, and a tensor on another
            device makes it wait.
        contexts: by the name of the prompt, text embeddings [B,L,D].
        method: whose ``branches`` and ``active`` rows are evaluated.
        noise: [B,C,h,w] the noise in ``z_t``.
        threshold: NFSD's timestep, see :func:`threshold_step`.
        source: [B,C,h,w] the source's latents with the same noise at the same ``t``, for the branches ``source_...``.
        lora: VSD's second network, for the branch ``lora``.
        view_weights: [2,B] Perp-Neg's weights, on the CPU: each condition direction is replaced by :func:`perp_neg`
            against the prompts ``cond_against_0`` and ``cond_against_1`` (``source_cond_against_...``) in the rows
            where the weight is not 0. A method that gives its branch ``cond`` another prompt is left alone.

    Raises:
        KeyError: ``contexts`` lacks a prompt of the method.
        ValueError: the method needs a source or a second network that was not given.
    """
    steps, t = t.cpu(), move(t, z_t.device)
    rows = {branch: method.rows(branch, steps, threshold) for branch in method.branches}
    if view_weights is not None:
        for cond, _ in method.condition_pairs:
            rows |= {f"{cond}_against_{i}": part.nonzero().squeeze(1) for i, part in enumerate(view_weights)}
    batches = {
        branch: Batch(source if branch.startswith("source_") else z_t, contexts[method.prompt(branch)], index)
        for branch, index in rows.items()
    }
    second = {"lora": batches.pop("lora")} if "lora" in batches else {}

    eps = _evaluate(denoiser, batches, t) | _evaluate(lora, second, t)
    if view_weights is not None:
        for cond, uncond in method.condition_pairs:
            against = [eps.pop(f"{cond}_against_{i}") - eps[uncond] for i in range(len(view_weights))]
            eps[cond] = eps[uncond] + perp_neg(eps[cond] - eps[uncond], against, view_weights)
    unlisted = torch.full_like(z_t, torch.nan)
    return Predictions(
        noise=noise,
        **{name: eps.get(name, unlisted) for name in BRANCHES},
        t=t,
        threshold=threshold,
    )


@dataclass(frozen=True)
class Batch:
    """What a branch evaluates: ``rows`` [n] (int64) of the latents [B,C,h,w] given the embeddings [B,L,D]."""

    latents: Tensor | None
    context: Tensor
    rows: Tensor


def _evaluate(network: Denoiser | None, batches: Mapping[str, Batch], t: Tensor) -> dict[str, Tensor]:
    """The predictions [B,C,h,w] of every branch from one call of the network, 0 in the rows that it leaves out."""
    if not batches:
        return {}
    parts = []
    for branch, batch in batches.items():
        if network is None or batch.latents is None:
            raise ValueError(f"the method's branch {branch!r} needs a {branch.split('_')[0]}, which was not given")
        rows = move(batch.rows, batch.latents.device)
        parts.append((branch, batch.latents, rows, batch.context[rows]))
    assert network is not None
    eps = network.predict_eps(
        torch.cat([latents[rows] for _, latents, rows, _ in parts]),
        torch.cat([t[rows] for _, _, rows, _ in parts]),
        torch.cat([context for *_, context in parts]),
    )
    predicted = {}
    for (branch, latents, rows, _), part in zip(parts, eps.split([len(rows) for _, _, rows, _ in parts]), strict=True):
        predicted[branch] = torch.zeros_like(latents).index_copy(0, rows, part)
    return predicted


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
