"""Classifier-free guidance, in the one formula of this package (Perp-Neg: `distill.gradient.perp_neg`, `prompts`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def guided(uncond: Tensor, cond: Tensor, s: float) -> Tensor:
    """ε_∅ + s(ε_y - ε_∅) (2207.12598): s = 0 is the unconditional prediction, s = 1 the conditional one."""
    return uncond + s * (cond - uncond)
