"""Noise predictions of a prior for noised images, from which the figures of the decomposition are computed.

Directions keep the sign of ε, which points away from the data: an improvement is a step against the direction, of
length σ/α in the units of a latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nfsd3d.context import Context
from nfsd3d.evaluate.statistics import size
from nfsd3d.prior.base import Prior
from nfsd3d.prior.lora import LoraNetwork
from nfsd3d.prior.schedule import NoiseSchedule

if TYPE_CHECKING:
    from nfsd3d.views.cameras import Cameras

LATENT_PIXELS_PER_CALL = 2**14
"""Latent pixels in one batch of the denoiser."""


@dataclass(frozen=True)
class Observation:
    """A prior's predictions for N latents ``z`` [N,C,h,w] with K noises ``noise`` [K,N,C,h,w] at T timesteps.

    ``eps`` maps the prompt's name to predictions [T,K',N,C,h,w] for the first K' <= K noises.
    """

    schedule: NoiseSchedule
    timesteps: tuple[int, ...]
    z: Tensor
    noise: Tensor
    eps: Mapping[str, Tensor]

    @property
    def delta_c(self) -> Tensor:
        """[T,K',N,C,h,w] ε(y) - ε(∅), the condition direction."""
        cond = self.eps["cond"]
        return cond - self.eps["uncond"][:, : cond.shape[1]]

    @property
    def residual(self) -> Tensor:
        """[T,K,N,C,h,w] ε(∅) - ε, the residual that SDS adds to the condition direction."""
        uncond = self.eps["uncond"]
        return uncond - self.noise[: uncond.shape[1]]

    @property
    def step(self) -> Tensor:
        """[T,1,1,1,1,1] σ/α, the length of a step against a direction."""
        alpha_bar = self.schedule.alpha_bar(self.schedule.time(torch.tensor(self.timesteps))).cpu()
        return ((1 - alpha_bar) / alpha_bar).sqrt().to(self.z.dtype)[:, None, None, None, None, None]


@dataclass(frozen=True)
class PairObservation:
    """Pairs (see ``image_pairs.Pairs``) with the same noise: ``clean`` has ε(∅), ``distorted`` also other prompts.

    ``mask`` [N,h,w] (bool) is where they differ, on latent pixels. ``shared``: other pairs have the same clean images,
    so that differences to them are paired.
    """

    clean: Observation
    distorted: Observation
    mask: Tensor
    shared: bool

    @property
    def delta_n(self) -> Tensor:
        """[T,K,N,C,h,w] the noise direction, ε(z_t(x_ID); ∅)."""
        return self.clean.eps["uncond"]

    @property
    def delta_d(self) -> Tensor:
        """[T,K,N,C,h,w] the domain direction of the pair, ε(z_t(x_OOD); ∅) - ε(z_t(x_ID); ∅)."""
        return self.distorted.eps["uncond"] - self.delta_n

    def distance_after(self, direction: Tensor) -> Tensor:
        """[T,N] the distance of z_OOD - (σ/α) ``direction`` from z_ID, as a share of z_OOD's."""
        apart = self.distorted.z - self.clean.z
        return (size(apart - self.distorted.step * direction) / size(apart)).mean(1)


Predict = Callable[[Tensor, Tensor, Context, slice], Tensor]
"""(z_t, times, condition, which of the N latents) -> predicted noise."""


@torch.no_grad()
def observe(
    prior: Prior,
    z: Tensor,
    noise: Tensor,
    timesteps: Sequence[int],
    contexts: Mapping[str, Context],
    *,
    predict: Predict | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Observation:
    """The predictions for latents ``z`` [N,C,h,w] with noise [K,N,C,h,w] at each timestep, one call a batch.

    ``contexts`` are conditions by name, [N] or [1]. ``predict`` replaces the prior's denoiser.
    ``advance`` is called after each timestep. Results are on the CPU.
    """
    predict = predict or (lambda z_t, t, context, entries: prior.predict_eps(z_t, t, context))
    z, noise = z.to(prior.device), noise.to(prior.device)
    count = len(z)
    given = {name: context.to(prior.device).expand(count) for name, context in contexts.items()}
    batch_size = max(1, LATENT_PIXELS_PER_CALL // z[0, 0].numel())
    eps = {name: torch.empty(len(timesteps), *noise.shape, dtype=z.dtype) for name in contexts}
    for i, t in enumerate(timesteps):
        for k, draw in enumerate(noise):
            for entries in _slices(count, batch_size):
                step = torch.full((entries.stop - entries.start,), t, device=prior.device)
                steps = prior.schedule.time(step)
                z_t = prior.schedule.add_noise(z[entries], draw[entries], steps)
                for name, context in given.items():
                    eps[name][i, k, entries] = predict(z_t, steps, context[entries], entries).cpu()
        advance()
    return Observation(prior.schedule, tuple(timesteps), z.cpu(), noise.cpu(), eps)


def lora_stages(
    prior: Prior,
    lora: LoraNetwork,
    seen: Observation,
    context: Context,
    cameras: Cameras,
    stages: Sequence[int],
    rng: torch.Generator,
    *,
    batch: int = 8,
    advance: Callable[[], None] = lambda: None,
) -> dict[int, Tensor]:
    """The LoRA network's predictions for ``seen``'s noised latents after each number of training steps in ``stages``.

    It is trained on the latents themselves, ``batch`` at a time, given ``context`` [N] and ``cameras`` [N].
    ``advance`` is called after every training step and every timestep observed.
    """
    z, cameras = seen.z.to(prior.device), cameras.to(prior.device)
    stride = max(1, len(z) // batch)

    def predict(z_t: Tensor, t: Tensor, context: Context, entries: slice) -> Tensor:
        return lora.at(cameras[entries]).predict_eps(z_t, t, context)

    predictions, done = {}, 0
    for steps in sorted(stages):
        for _ in range(done, steps):
            some = slice(int(torch.randint(stride, (), generator=rng)), None, stride)
            lora.learn(z[some], context[some], cameras[some], rng)
            advance()
        done = steps
        contexts = {"lora": context}
        observed = observe(prior, seen.z, seen.noise, seen.timesteps, contexts, predict=predict, advance=advance)
        predictions[steps] = observed.eps["lora"]
    return predictions


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
