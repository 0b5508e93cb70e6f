"""From a prompt to the text embeddings of a batch of cameras."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nfsd3d.cameras import Cameras

VIEW_WORDS = ("front view", "side view", "back view", "overhead view")
FRONT, SIDE, BACK, OVERHEAD = range(4)

PAPER_NEGATIVE_PROMPT = (
    "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, low-resolution, gloomy"
)
"""p_neg of NFSD (2310.17590)."""


class TextEmbedder(Protocol):
    """What a prompt bank needs of a prior."""

    def embed(self, prompts: list[str]) -> Tensor:
        """[N,L,D] text embeddings of N prompts."""
        ...


@dataclass(frozen=True)
class ViewThresholds:
    """Which cameras count as which view, in degrees.

    Overhead above ``overhead_deg`` of elevation; otherwise front up to ``front_deg`` of azimuth to either side, back
    beyond ``back_deg``, and side between.
    """

    front_deg: float = 45.0
    back_deg: float = 135.0
    overhead_deg: float = 60.0

    def view_index(self, cameras: Cameras) -> Tensor:
        """[B] int64 index into :data:`VIEW_WORDS`, on the cameras' device. Azimuths may have any number of turns."""
        azimuth = (torch.remainder(cameras.azimuth + math.pi, 2 * math.pi) - math.pi).abs()
        view = torch.full_like(azimuth, SIDE, dtype=torch.int64)
        view[azimuth <= math.radians(self.front_deg)] = FRONT
        view[azimuth > math.radians(self.back_deg)] = BACK
        view[cameras.elevation > math.radians(self.overhead_deg)] = OVERHEAD
        return view


@dataclass(frozen=True)
class PromptBank:
    """The embeddings of one run: ``cond`` [4,L,D] (by view), ``uncond`` and ``neg`` [1,L,D].

    ``source`` [4,L,D] (by view) are those of an edit's source.
    """

    cond: Tensor
    uncond: Tensor
    neg: Tensor
    thresholds: ViewThresholds
    source: Tensor | None = None

    @classmethod
    def build(
        cls,
        prior: TextEmbedder,
        prompt: str,
        negative_prompt: str = PAPER_NEGATIVE_PROMPT,
        *,
        view_dependent: bool = True,
        thresholds: ViewThresholds | None = None,
        source_prompt: str | None = None,
    ) -> "PromptBank":
        """Embeds a prompt once, with the words of each view if ``view_dependent``; the others never have them."""
        texts = [prompt] if source_prompt is None else [prompt, source_prompt]
        prompts = [f"{text}, {view}" if view_dependent else text for text in texts for view in VIEW_WORDS]
        embedded = prior.embed([*prompts[:4], "", negative_prompt, *prompts[4:]])
        source = None if source_prompt is None else embedded[6:]
        return cls(embedded[:4], embedded[4:5], embedded[5:6], thresholds or ViewThresholds(), source)

    def contexts(self, cameras: Cameras) -> dict[str, Tensor]:
        """For every branch ("cond", "uncond", "neg"; editing also "source_cond" and "source_uncond"), the embeddings
        [B,L,D] of these cameras' views.
        """
        view = self.thresholds.view_index(cameras).to(self.cond.device)
        count = len(cameras)
        contexts = {
            "cond": self.cond[view],
            "uncond": self.uncond.expand(count, -1, -1),
            "neg": self.neg.expand(count, -1, -1),
        }
        if self.source is not None:
            contexts |= {"source_cond": self.source[view], "source_uncond": contexts["uncond"]}
        return contexts
