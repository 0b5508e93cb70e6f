"""Types of score distillation: a method, its noising, the noise predictions it reads, and the model that makes them.

Importing this file does not import torch, so that names and settings of methods are checked before it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Protocol

from nfsd3d.distill.noising import RandomNoise

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from nfsd3d.settings.schedules import Schedule


class Denoiser(Protocol):
    """A network that predicts noise."""

    def predict_eps(self, z_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """[N,C,h,w] predicted noise at timesteps ``t`` [N] given ``context`` [N,L,D]; no gradient."""
        ...


class ForwardProcess(Protocol):
    """The forward diffusion process of a model; `nfsd3d.prior.schedule.NoiseSchedule` documents the methods."""

    @property
    def training_steps(self) -> int:
        """Number of timesteps."""
        ...

    def alpha_bar(self, t: Tensor) -> Tensor:
        """[N] ᾱ at ``t``."""
        ...

    def alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients of signal and noise, each [N,1,1,1]."""
        ...

    def add_noise(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """z_t = alpha z + sigma eps."""
        ...

    def eps_from_x0(self, z_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """The noise in ``z_t`` if ``x0`` is the clean latent."""
        ...

    def ddim_step(self, z_t: Tensor, eps: Tensor, t: Tensor, t_next: Tensor | None) -> Tensor:
        """Latents moved from ``t`` to ``t_next`` along ``eps``."""
        ...


class DiffusionModel(Denoiser, Protocol):
    """A denoiser with the forward process that it was trained with."""

    @property
    def schedule(self) -> ForwardProcess:
        """Its forward process."""
        ...


class Noising(Protocol):
    """How a method noises latents, and what it takes as their noise."""

    @property
    def batch_entries(self) -> int:
        """Batch entries of the denoiser for each latent in one call; 0 where the denoiser is not called."""
        ...

    def nfe(self, t: Tensor, training_steps: int) -> Tensor:
        """[N] expected function evaluations of the denoiser for latents at timesteps ``t`` [N] (int64)."""
        ...

    def __call__(
        self, model: DiffusionModel, z: Tensor, t: Tensor, contexts: Mapping[str, Tensor], rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """(z_t, noise) of latents ``z``, both [B,C,h,w] without gradient.

        ``t`` [B] are timesteps, ``contexts`` text embeddings [B,L,D] by the name of the prompt; ``rng`` is on the CPU.
        """
        ...


@dataclass(frozen=True)
class Predictions:
    """Noise predictions for a batch of noised latents; every tensor but ``t`` is [B,C,h,w].

    ``noise`` is the added noise, or the tensor that a method's noising returns for it. ``cond``, ``uncond`` and ``neg``
    are predicted given the prompt, the empty prompt and the negative prompt; ``source_cond`` and ``source_uncond`` from
    the noised source given its own prompt and the empty one; ``lora`` by VSD's LoRA network. A prediction is 0 in batch
    entries where the method is not active, and NaN if the method does not list it. ``t`` [B] are the timesteps,
    ``threshold`` the timestep from which NFSD uses the negative prompt.
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


PREDICTIONS = tuple(field.name for field in fields(Predictions) if field.name not in ("noise", "t", "threshold"))
"""The fields of `Predictions` that a network fills."""

Activity = Callable[["Tensor", int], "Tensor"]
"""(timesteps [B], threshold) -> bool [B]: the batch entries that need a prediction."""


def always(t: Tensor, threshold: int) -> Tensor:
    """Active at every timestep."""
    return t == t  # not torch.ones_like, which would import torch


def from_threshold(t: Tensor, threshold: int) -> Tensor:
    """Active at timesteps from the threshold on."""
    return t >= threshold


@dataclass(frozen=True)
class Method:
    """A distillation method: its formula, the predictions it reads, its noising and its default settings.

    Args:
        function: (predictions, guidance scale s) -> direction [B,C,h,w] in the sign of ε, not weighted.
        predictions: the fields of `Predictions` that ``function`` reads, see `PREDICTIONS`.
        active: restricts a prediction to some batch entries; a prediction that is not listed is made for all.
        prompts: the prompt of a prediction, where that is not the prediction's own name.
        noising: how latents are noised.
        then: the method of the second half of training, if it is another one.
        guidance_scale: s over training where no YAML file sets it.
        weighting: w(t) where no YAML file sets it, a key of `nfsd3d.distill.gradient.WEIGHTINGS`.

    Raises:
        ValueError: a prediction that does not exist.
    """

    function: Callable[[Predictions, float], Tensor]
    predictions: tuple[str, ...]
    active: Mapping[str, Activity] = field(default_factory=dict)
    prompts: Mapping[str, str] = field(default_factory=dict)
    noising: Noising = field(default_factory=RandomNoise)
    then: Method | None = None
    guidance_scale: Schedule = 7.5
    weighting: str = "sigma2"

    def __post_init__(self) -> None:
        unknown = [name for name in (*self.predictions, *self.active, *self.prompts) if name not in PREDICTIONS]
        if unknown:
            raise ValueError(f"a method's prediction {unknown[0]!r}: there is none; choose {', '.join(PREDICTIONS)}")

    def entries(self, prediction: str, t: Tensor, threshold: int) -> Tensor:
        """Indices (int64) of the batch entries that need ``prediction``, on the device of ``t``."""
        return self.active.get(prediction, always)(t, threshold).nonzero().squeeze(1)

    def prompt(self, prediction: str) -> str:
        """The name of the prompt of a prediction."""
        return self.prompts.get(prediction, prediction)

    def at(self, progress: float) -> Method:
        """The method at this fraction of training."""
        return self if self.then is None or progress < 0.5 else self.then

    @property
    def all_prompts(self) -> frozenset[str]:
        """The names of all prompts of a whole run."""
        later = self.then.all_prompts if self.then is not None else frozenset()
        return later | {self.prompt(prediction) for prediction in self.predictions}

    @property
    def needs_source(self) -> bool:
        """Whether it edits, and so needs a source's images and prompt."""
        return any(prediction.startswith("source_") for prediction in self.predictions)

    @property
    def needs_lora(self) -> bool:
        """Whether it trains a LoRA network on the rendered images."""
        return "lora" in self.predictions

    @property
    def of_prior(self) -> tuple[str, ...]:
        """The predictions that the prior makes, all in one call."""
        return tuple(prediction for prediction in self.predictions if prediction != "lora")

    @property
    def condition_pairs(self) -> tuple[tuple[str, str], ...]:
        """Pairs of predictions (given the prompt, given the empty one) whose difference is a condition direction."""
        pairs = (("cond", "uncond"), ("source_cond", "source_uncond"))
        return tuple(pair for pair in pairs if set(pair) <= set(self.predictions) and pair[0] not in self.prompts)

    def nfe(self, t: Tensor, training_steps: int, threshold: int) -> float:
        """Expected function evaluations for a view and step, averaged over timesteps ``t`` [N] (int64).

        Counts the noising, each prediction where it is active, and one for the training step of a LoRA network (forward
        and backward pass count as one).
        """
        noising = float(self.noising.nfe(t, training_steps).double().mean())
        predicted = sum(len(self.entries(prediction, t, threshold)) for prediction in self.predictions) / len(t)
        return noising + predicted + self.needs_lora
