"""The distillation methods: one short pure function per paper, and one row per method in `METHODS`.

Directions keep the sign of ε, which points away from the data: a step that improves the latent goes along minus the
direction. They are not weighted; multiply by w(t) (see `nfsd3d.distill.gradient.WEIGHTINGS`). Importing this file does
not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nfsd3d.distill.noising import CoupledNoise, IntervalNoise, InversionNoise, LaterTimes, PredictedNoise, RandomNoise
from nfsd3d.distill.types import PREDICTIONS, Noising, Predictions
from nfsd3d.guidance import guided
from nfsd3d.plugins.table import Table

if TYPE_CHECKING:
    from torch import Tensor

    from nfsd3d.settings.schedules import Schedule


def sds(p: Predictions, s: float) -> Tensor:
    """Score distillation sampling, ε_∅ + s(ε_y - ε_∅) - ε (DreamFusion, 2209.14988, eq. 3)."""
    return guided(p.uncond, p.cond, s) - p.noise


def nfsd(p: Predictions, s: float) -> Tensor:
    """Noise-free score distillation, δ_D + s δ_C (2310.17590, eq. 8).

    δ_C = ε_y - ε_∅ is the condition direction. The in-domain direction δ_D is ε_∅ below the threshold, where the
    added noise is small, and ε_∅ - ε_neg from the threshold on, where the difference cancels it.
    """
    delta_c = p.cond - p.uncond
    late = (p.t >= p.threshold)[:, None, None, None]
    delta_d = (p.uncond - p.neg).where(late, p.uncond)
    return delta_d + s * delta_c


def csd(p: Predictions, s: float) -> Tensor:
    """Classifier score distillation, s(ε_y - ε_∅) (2310.19415, eq. 7).

    With its negative-prompt term at the weights (s, 1) it is NFSD with the threshold 0.
    """
    return s * (p.cond - p.uncond)


def vsd(p: Predictions, s: float) -> Tensor:
    """Variational score distillation, ε_∅ + s(ε_y - ε_∅) - ε_LoRA (ProlificDreamer, 2305.16213, algorithm 1).

    ε_LoRA is predicted by a LoRA network, which is trained on the rendered images during the run.
    """
    return guided(p.uncond, p.cond, s) - p.lora


def dds(p: Predictions, s: float) -> Tensor:
    """Delta denoising score, ε^cfg(z_t; y) - ε^cfg(z̃_t; ỹ) (2304.07090).

    The source z̃ and its prompt ỹ have the same noise and timestep, so that the errors of both predictions cancel.
    """
    return guided(p.uncond, p.cond, s) - guided(p.source_uncond, p.source_cond, s)


def asd(p: Predictions, s: float) -> Tensor:
    """Asynchronous score distillation, ε_∅ + s(ε_y - ε_∅) - ε_y(z_t+Δ) (ScaleDreamer, 2407.02040).

    The prediction at a noisier time takes the place of VSD's second network: it, too, is nearer to the noise in renders
    that are not images yet.
    """
    return guided(p.uncond, p.cond, s) - p.later


def dvrf(p: Predictions, s: float) -> Tensor:
    """Delta velocity rectified flow, DDS of a target that is moved away from its source (2509.05342, eqs. 6 and 8).

    With w(t) = 1/(1 - t) it is v^cfg(z_t; y) - v^cfg(z̃_t; ỹ) + (1 - η)(z - z̃). ``offset`` is η(z - z̃); without it, it
    is DDS.
    """
    return dds(p, s) - p.offset


Activity = Callable[["Tensor", float], "Tensor"]
"""(times [B], threshold) -> bool [B]: the batch entries that need a prediction."""


def always(t: Tensor, threshold: float) -> Tensor:
    """Active at every time."""
    return t == t  # not torch.ones_like, which would import torch


def from_threshold(t: Tensor, threshold: float) -> Tensor:
    """Active at times from the threshold on."""
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
        later: the times of the prediction ``later``, if the method reads it.
        leaves_source: whether the noised latents are moved away from the source's by ``distill.eta``.
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
    later: LaterTimes | None = None
    leaves_source: bool = False
    then: Method | None = None
    guidance_scale: Schedule = 7.5
    weighting: str = "sigma2"

    def __post_init__(self) -> None:
        unknown = [name for name in (*self.predictions, *self.active, *self.prompts) if name not in PREDICTIONS]
        if unknown:
            raise ValueError(f"a method's prediction {unknown[0]!r}: there is none; choose {', '.join(PREDICTIONS)}")

    def entries(self, prediction: str, t: Tensor, threshold: float) -> Tensor:
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

    def batch_sizes(self, views: int, *, perp_neg: bool) -> set[int]:
        """All batch sizes with which a run's steps of ``views`` may call the UNet, before chunking and padding.

        Predictions that every view needs are always in the batch; the others, Perp-Neg's included, for any number of
        views. A noising moves any number of the latents.
        """
        found = set() if self.then is None else self.then.batch_sizes(views, perp_neg=perp_neg)
        always = sum(prediction not in self.active for prediction in self.of_prior)
        most = len(self.of_prior) + (2 * len(self.condition_pairs) if perp_neg else 0)
        moved = {self.noising.batch_entries * count for count in range(1, views + 1)}
        return found | set(range(max(always * views, 1), most * views + 1)) | (moved - {0})

    def nfe(self, t: Tensor, training_steps: int, threshold: int) -> float:
        """Expected function evaluations for a view and step, averaged over timesteps ``t`` [N] (int64).

        Counts the noising, each prediction where it is active, and one for the training step of a LoRA network (forward
        and backward pass count as one).
        """
        noising = float(self.noising.nfe(t, training_steps).double().mean())
        predicted = sum(len(self.entries(prediction, t, threshold)) for prediction in self.predictions) / len(t)
        return noising + predicted + self.needs_lora


METHODS: dict[str, Method] = {
    "sds": Method(sds, ("cond", "uncond"), guidance_scale=100.0),
    "nfsd": Method(nfsd, ("cond", "uncond", "neg"), active={"neg": from_threshold}),
    "csd": Method(csd, ("cond", "uncond")),
    "vsd": Method(vsd, ("cond", "uncond", "lora"), prompts={"lora": "plain"}),
    "dds": Method(
        dds,
        ("cond", "uncond", "source_cond", "source_uncond"),
        prompts={"source_uncond": "uncond"},
        weighting="uniform",
    ),
    # Interval score matching (2311.11284) and score distillation via inversion (2405.15891): SDS with the noise of a
    # DDIM inversion of the latent.
    "ism": Method(sds, ("cond", "uncond"), noising=IntervalNoise(), weighting="sigma_over_alpha"),
    "sdi": Method(sds, ("cond", "uncond"), noising=InversionNoise(), guidance_scale=8.5, weighting="sigma_over_alpha"),
    # Bridge (2406.09417): SDS first, then the direction from a description of flaws to one of quality.
    "bridge": Method(
        sds,
        ("cond", "uncond"),
        then=Method(csd, ("cond", "uncond"), prompts={"cond": "better", "uncond": "worse"}),
        guidance_scale=[(0.0, 100.0), (0.5, 100.0), (0.5, 35.0)],
    ),
    "asd": Method(asd, ("cond", "uncond", "later"), prompts={"later": "cond"}, later=LaterTimes()),
    # Losses on a rectified flow's velocity: SDS, with random noise (2406.03293), with the noise that the teacher
    # predicts (the same paper's RFDS-Rev), and with the noise at the end of the flow's path (2408.05008).
    "rfds": Method(sds, ("cond", "uncond"), guidance_scale=100.0, weighting="velocity"),
    "rfds_rev": Method(sds, ("cond", "uncond"), noising=PredictedNoise(), guidance_scale=100.0, weighting="velocity"),
    "ucm": Method(sds, ("cond", "uncond"), noising=CoupledNoise(), guidance_scale=60.0, weighting="velocity"),
    "dvrf": Method(
        dvrf,
        ("cond", "uncond", "source_cond", "source_uncond"),
        prompts={"source_uncond": "uncond"},
        leaves_source=True,
        weighting="velocity",
    ),
}
"""The built-in methods, by the value of ``distill``; `register` adds others."""

TABLE: Table[Method] = Table("distill.method", "method", "nfsd3d.methods", METHODS, Method)
"""All methods: built in, registered, and those of installed packages."""

find_method = TABLE.find
register = TABLE.register
unregister = TABLE.unregister
