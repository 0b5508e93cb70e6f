"""View-dependent prompts: the text embeddings for a batch of cameras, and Perp-Neg's mixtures and weights."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nfsd3d.context import Context
from nfsd3d.device import move
from nfsd3d.errors import InputError
from nfsd3d.settings.prompt_texts import BACK, FINE_VIEW_WORDS, FRONT, HEIGHTS, OVERHEAD, SECTORS, SIDE, prompt_texts
from nfsd3d.settings.prompts import PromptSettings
from nfsd3d.views.cameras import Cameras

PAPER_NEGATIVE_PROMPT = (
    "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, low-resolution, gloomy"
)
"""p_neg of NFSD (2310.17590)."""

NEGATIVE = ("uncond", "neg")
"""Names of the prompts that guidance moves away from."""


class TextEmbedder(Protocol):
    """The part of a prior that a prompt bank needs."""

    def embed(self, prompts: list[str], negative: Sequence[bool] | None = None) -> Context:
        """What N prompts are for the denoiser, [N]; ``negative`` marks those that guidance moves away from."""
        ...


def view_index(cameras: Cameras, settings: PromptSettings) -> Tensor:
    """[B] int64 index into ``VIEW_WORDS``, on the cameras' device. Azimuths may have any number of turns."""
    azimuth = _turned(cameras.azimuth)
    view = torch.full_like(azimuth, SIDE, dtype=torch.int64)
    view[azimuth <= math.radians(settings.front_deg)] = FRONT
    view[azimuth > math.radians(settings.back_deg)] = BACK
    view[_overhead(cameras, settings)] = OVERHEAD
    return view


def fine_view_index(cameras: Cameras, settings: PromptSettings) -> Tensor:
    """[B] int64 index into ``FINE_VIEW_WORDS``, on the cameras' device; only ``overhead_deg`` counts."""
    sector = (cameras.azimuth / (2 * math.pi / len(SECTORS))).round().long() % len(SECTORS)
    starts = torch.tensor([math.radians(start) for start in HEIGHTS.values()], device=cameras.elevation.device)
    height = (cameras.elevation[:, None] >= starts).sum(1) - 1
    return (height * len(SECTORS) + sector).masked_fill(_overhead(cameras, settings), len(FINE_VIEW_WORDS) - 1)


def _overhead(cameras: Cameras, settings: PromptSettings) -> Tensor:
    return cameras.elevation > math.radians(settings.overhead_deg)


def perp_neg_mixture(azimuth: Tensor) -> Tensor:
    """[B,4] the weight of each view's embedding in Perp-Neg's positive prompt, at azimuths [B] in radians (any turn).

    Linear from front through side to back (2304.04968, as used for 3D): only the front view at 0, only the side view at
    90 degrees, only the back view at 180.
    """
    quarter = _turned(azimuth) / (math.pi / 2)  # 0 front, 1 side, 2 back
    front, back = (1 - quarter).clamp(min=0), (quarter - 1).clamp(min=0)
    return torch.stack([front, 1 - front - back, back, torch.zeros_like(quarter)], dim=1)


def perp_neg_weights(azimuth: Tensor) -> Tensor:
    """[2,B] weights (<= 0) of Perp-Neg's two negative views, at azimuths [B] in radians (any turn).

    With r the weight of the more frontal of the two mixed views, and curves a exp(-b r) + c (2304.04968, as used for
    3D): between front and side, f_fs(r) for the front and f_sf(1 - r) for the side; between side and back, f_sb(r) for
    the side and f_fsb(r) for the front.
    """

    def curve(a: float, b: float, c: float, r: Tensor) -> Tensor:
        return -(a * torch.exp(-b * r) + c)

    quarter = _turned(azimuth) / (math.pi / 2)
    frontal = quarter < 1
    r = torch.where(frontal, 1 - quarter, 2 - quarter)
    front_or_side = torch.where(frontal, curve(4, 0.5, -2.426, r), curve(1, 0.5, -0.606, r))
    side_or_front = torch.where(frontal, curve(4, 0.5, -2.426, 1 - r), curve(1, 0.5, 0.967, r))
    return torch.stack([front_or_side, side_or_front])


def _turned(azimuth: Tensor) -> Tensor:
    """Unsigned angle from the front, in [0, pi], of azimuths with any number of turns."""
    return (torch.remainder(azimuth + math.pi, 2 * math.pi) - math.pi).abs()


@dataclass(frozen=True)
class PromptBank:
    """What the prompts of one run are for the denoiser.

    ``embeddings`` maps a prompt's name to its condition [V], one entry per view of ``VIEW_WORDS`` or, if ``fine``, of
    ``FINE_VIEW_WORDS``; or to [1]. With Perp-Neg, "cond" and "source_cond" have two negative prompts each, see
    :meth:`contexts` and :meth:`view_weights`.
    """

    embeddings: Mapping[str, Context]
    settings: PromptSettings

    @property
    def fine(self) -> bool:
        """Whether the view words are the fine ones."""
        return self.settings.view_dependent and self.settings.views == "fine"

    @classmethod
    def build(
        cls,
        prior: TextEmbedder,
        prompt: str,
        negative_prompt: str,
        settings: PromptSettings,
        *,
        needed: Collection[str] = (),
        source_prompt: str | None = None,
        suffixes: tuple[str, str] = ("", ""),
    ) -> "PromptBank":
        """The bank of a run, with every prompt embedded once.

        Always present: "cond", the prompt, with view words if ``settings`` ask for them; "uncond", the empty prompt,
        and "neg", the negative prompt, both without view words. Present if ``needed``: "plain", the prompt without view
        words; "better" and "worse", the prompt with one of the two ``suffixes`` and view words; "source_cond", the
        source's prompt with view words.

        Raises:
            InputError: "source_cond" is needed, but there is no source prompt.
        """
        if "source_cond" in needed and source_prompt is None:
            raise InputError('source_prompt=null: editing needs it; say what the source shows, source_prompt="..."')

        texts = prompt_texts(
            prompt, negative_prompt, settings, needed=needed, source_prompt=source_prompt, suffixes=suffixes
        )
        prompts = [text for group in texts.values() for text in group]
        negative = [name in NEGATIVE for name, group in texts.items() for _ in group]
        embedded = prior.embed(prompts, negative)
        groups = embedded.split([len(group) for group in texts.values()])
        return cls(dict(zip(texts, groups, strict=True)), settings)

    def contexts(self, cameras: Cameras) -> dict[str, Context]:
        """The condition [B] of each prompt, by name, for these cameras' views.

        With Perp-Neg, "cond_against_0" and "cond_against_1" are the negative views: front and side for azimuths before
        the side view, side and front behind it. "cond" interpolates the embeddings of two neighbouring views
        (:func:`perp_neg_mixture`) instead of switching at the thresholds. If ``fine``, "cond" is that of its eighth of
        the circle, and the negative views have the same height and the visible side. Cameras above the overhead
        threshold have the overhead view and no negative views. The same applies to "source_cond".
        """
        index = fine_view_index if self.fine else view_index
        view = move(index(cameras, self.settings), self.embeddings["cond"].device)
        contexts = {
            name: embedded[view] if len(embedded) > 1 else embedded.expand(len(cameras))
            for name, embedded in self.embeddings.items()
        }
        if not self.settings.perp_neg:
            return contexts
        mixture = move(perp_neg_mixture(cameras.azimuth), view.device)
        behind = (mixture[:, BACK] > 0) | (mixture[:, SIDE] == 1)
        front, side = torch.full_like(view, FRONT), torch.full_like(view, SIDE)
        if self.fine:
            row = (view // len(SECTORS)).clamp(max=len(HEIGHTS) - 1) * len(
                SECTORS
            )  # of the same height; the overhead view has none
            left = move(torch.sin(cameras.azimuth) > 0, view.device)
            front = row + SECTORS.index("straight front view")
            side = row + torch.where(left, SECTORS.index("left side view"), SECTORS.index("right side view"))
        for name in contexts.keys() & {"cond", "source_cond"}:
            embedded = self.embeddings[name]
            if not self.fine:
                contexts[name] = contexts[name].where(view == OVERHEAD, embedded.mixed(mixture))
            contexts[f"{name}_against_0"] = embedded[torch.where(behind, side, front)]
            contexts[f"{name}_against_1"] = embedded[torch.where(behind, front, side)]
        return contexts

    def view_weights(self, cameras: Cameras) -> Tensor | None:
        """[2,B] Perp-Neg's weights of "cond_against_0" and "cond_against_1", on the CPU; None without Perp-Neg."""
        if not self.settings.perp_neg:
            return None
        overhead = view_index(cameras, self.settings) == OVERHEAD
        return perp_neg_weights(cameras.azimuth).masked_fill(overhead, 0.0).cpu()
