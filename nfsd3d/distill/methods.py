"""The distillation methods: one short pure function per paper, and one row per method in `METHODS`.

Directions keep the sign of ε, which points away from the data: a step that improves the latent goes along minus the
direction. They are not weighted; multiply by w(t) (see `nfsd3d.distill.gradient.WEIGHTINGS`). Importing this file does
not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfsd3d.distill.noising import IntervalNoise, InversionNoise
from nfsd3d.distill.types import Method, Predictions, from_threshold
from nfsd3d.guidance import guided
from nfsd3d.plugins.table import Table

if TYPE_CHECKING:
    from torch import Tensor


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
}
"""The built-in methods, by the value of ``distill``; `register` adds others."""

TABLE: Table[Method] = Table("distill.method", "method", "nfsd3d.methods", METHODS, Method)
"""All methods: built in, registered, and those of installed packages."""

find_method = TABLE.find
register = TABLE.register
unregister = TABLE.unregister
