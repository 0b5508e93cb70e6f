"""One short pure function per paper, from named noise predictions to a direction on the latents.

Directions keep the sign of ε, which points away from the data: a step that improves the latent goes along minus the
direction. They are not weighted; multiply by w(t) (see :data:`nfsd3d.distill.gradient.WEIGHTINGS`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nfsd3d.distill.gradient import Predictions, guided


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
    """Classifier score distillation, s(ε_y - ε_∅) (2310.19415, eq. 7)."""
    return s * (p.cond - p.uncond)


def dds(p: Predictions, s: float) -> Tensor:
    """Delta denoising score, ε^cfg(z_t; y) - ε^cfg(z̃_t; ỹ) with the same noise (2304.07090, eq. 3)."""
    assert p.source_cond is not None and p.source_uncond is not None
    return guided(p.uncond, p.cond, s) - guided(p.source_uncond, p.source_cond, s)


Activity = Callable[[Tensor, int], Tensor]
"""(timesteps [B], threshold) -> bool [B]: the rows in which a branch is needed."""


def from_threshold(t: Tensor, threshold: int) -> Tensor:
    """Only rows of timesteps at or above the threshold."""
    return t >= threshold


@dataclass(frozen=True)
class Method:
    """A distillation method and what it costs.

    ``branches`` names the predictions that ``function`` reads; ``active`` restricts a branch to some rows (a branch
    that is not listed there is needed in all). ``needs_source``: it edits.
    """

    function: Callable[[Predictions, float], Tensor]
    branches: tuple[str, ...]
    active: Mapping[str, Activity] = field(default_factory=dict)
    needs_source: bool = False

    def rows(self, branch: str, t: Tensor, threshold: int) -> Tensor:
        """Indices (int64) of the rows of the batch in which ``branch`` is needed, on the device of ``t``."""
        if branch in self.active:
            return self.active[branch](t, threshold).nonzero().squeeze(1)
        return torch.arange(t.shape[0], device=t.device)


METHODS: dict[str, Method] = {
    "sds": Method(sds, branches=("cond", "uncond")),
    "nfsd": Method(nfsd, branches=("cond", "uncond", "neg"), active={"neg": from_threshold}),
    "csd": Method(csd, branches=("cond", "uncond")),
    "dds": Method(dds, branches=("cond", "uncond", "source_cond", "source_uncond"), needs_source=True),
}
