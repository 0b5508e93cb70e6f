"""One short pure function per paper, from named noise predictions to a direction on the latents.

Directions keep the sign of ε, which points away from the data: a step that improves the latent goes along minus the
direction. They are not weighted; multiply by w(t) (see :data:`nfsd3d.distill.gradient.WEIGHTINGS`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nfsd3d.distill.gradient import Predictions, guided
from nfsd3d.errors import InputError, did_you_mean


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
    delta_d = torch.where(late, p.uncond - p.neg, p.uncond)
    return delta_d + s * delta_c


def csd(p: Predictions, s: float) -> Tensor:
    """Classifier score distillation, s(ε_y - ε_∅) (2310.19415, eq. 7).

    With its negative-prompt term at the weights (s, 1) it is NFSD with the threshold 0.
    """
    return s * (p.cond - p.uncond)


def vsd(p: Predictions, s: float) -> Tensor:
    """Variational score distillation, ε_∅ + s(ε_y - ε_∅) - ε_LoRA (ProlificDreamer, 2305.16213, algorithm 1).

    ε_LoRA is a second network, which learns the rendered images as the run goes on.
    """
    return guided(p.uncond, p.cond, s) - p.lora


def dds(p: Predictions, s: float) -> Tensor:
    """Delta denoising score, ε^cfg(z_t; y) - ε^cfg(z̃_t; ỹ) (2304.07090).

    The source z̃ and its prompt ỹ have the same noise and timestep, so that what both predictions miss cancels.
    """
    return guided(p.uncond, p.cond, s) - guided(p.source_uncond, p.source_cond, s)


Activity = Callable[[Tensor, int], Tensor]
"""(timesteps [B], threshold) -> bool [B]: the rows in which a branch is needed."""


def from_threshold(t: Tensor, threshold: int) -> Tensor:
    """Only rows of timesteps at or above the threshold."""
    return t >= threshold


@dataclass(frozen=True)
class Method:
    """A distillation method and what it costs.

    ``branches`` names the predictions that ``function`` reads (fields of `Predictions`); ``active`` restricts a branch
    to some rows (a branch that is not listed there is needed in all); ``prompts`` names the prompt of a branch where
    that is not the branch's own name. ``noising`` says how the latents are noised, and what takes the place of the
    noise: a key of `nfsd3d.prior.schedule.NOISINGS`. ``then`` is the method of the second half of training, where that
    is another one.
    """

    function: Callable[[Predictions, float], Tensor]
    branches: tuple[str, ...]
    active: Mapping[str, Activity] = field(default_factory=dict)
    prompts: Mapping[str, str] = field(default_factory=dict)
    noising: str = "random"
    then: "Method | None" = None

    def rows(self, branch: str, t: Tensor, threshold: int) -> Tensor:
        """Indices (int64) of the rows of the batch in which ``branch`` is needed, on the device of ``t``."""
        if branch in self.active:
            return self.active[branch](t, threshold).nonzero().squeeze(1)
        return torch.arange(t.shape[0], device=t.device)

    def prompt(self, branch: str) -> str:
        """The name of the prompt that ``branch`` is given."""
        return self.prompts.get(branch, branch)

    def at(self, progress: float) -> "Method":
        """The method at this fraction of training."""
        return self if self.then is None or progress < 0.5 else self.then

    @property
    def all_prompts(self) -> frozenset[str]:
        """The names of all prompts that it ever needs."""
        later = self.then.all_prompts if self.then is not None else frozenset()
        return later | {self.prompt(branch) for branch in self.branches}

    @property
    def needs_source(self) -> bool:
        """Whether it edits: it needs a source's images and prompt."""
        return any(branch.startswith("source_") for branch in self.branches)

    @property
    def needs_lora(self) -> bool:
        """Whether it needs a second network that learns the rendered images."""
        return "lora" in self.branches

    @property
    def condition_pairs(self) -> tuple[tuple[str, str], ...]:
        """The branches (given the prompt, given the empty one) between which its condition directions lie."""
        pairs = (("cond", "uncond"), ("source_cond", "source_uncond"))
        return tuple(pair for pair in pairs if set(pair) <= set(self.branches) and pair[0] not in self.prompts)


METHODS: dict[str, Method] = {
    "sds": Method(sds, branches=("cond", "uncond")),
    "nfsd": Method(nfsd, branches=("cond", "uncond", "neg"), active={"neg": from_threshold}),
    "csd": Method(csd, branches=("cond", "uncond")),
    "vsd": Method(vsd, branches=("cond", "uncond", "lora"), prompts={"lora": "plain"}),
    "dds": Method(
        dds, branches=("cond", "uncond", "source_cond", "source_uncond"), prompts={"source_uncond": "uncond"}
    ),
    # Interval score matching (2311.11284) and score distillation via inversion (2405.15891): SDS whose
    # noise comes from inverting the latent.
    "ism": Method(sds, branches=("cond", "uncond"), noising="interval"),
    "sdi": Method(sds, branches=("cond", "uncond"), noising="inversion"),
    # Bridge (2406.09417): SDS first, then the direction from a description of flaws to one of quality.
    "bridge": Method(
        sds,
        branches=("cond", "uncond"),
        then=Method(csd, branches=("cond", "uncond"), prompts={"cond": "better", "uncond": "worse"}),
    ),
}


def find_method(name: str) -> Method:
    """The row of METHODS.

    Raises:
        InputError: there is none of this name.
    """
    if name not in METHODS:
        raise InputError(
            f"distill.method={name}: no such method{did_you_mean(name, list(METHODS))}; choose {', '.join(METHODS)}"
        )
    return METHODS[name]
