"""The texts that a run embeds: its prompts with words for the camera's view.

Importing this file does not import torch, so that the length of prompts is checked early.
"""

from collections.abc import Collection

from nfsd3d.settings.prompts import PromptSettings

VIEW_WORDS = ("front view", "side view", "back view", "overhead view")
FRONT, SIDE, BACK, OVERHEAD = range(4)

SECTORS = (
    "straight front view",
    "front left view",
    "left side view",
    "back left view",
    "straight back view",
    "back right view",
    "right side view",
    "front right view",
)
"""Eighths of the circle by azimuth; the first is centred on the front. Left and right are the object's."""
HEIGHTS = {"at eye level": -90.0, "slightly from above": 13.0, "from above": 37.0}
"""Words for the camera's height, and the lowest elevation in degrees of each."""
FINE_VIEW_WORDS = (*(f"{sector} {height}" for height in HEIGHTS for sector in SECTORS), VIEW_WORDS[OVERHEAD])
"""Every sector at every height, and the overhead view."""


def prompt_texts(
    prompt: str,
    negative_prompt: str,
    settings: PromptSettings,
    *,
    needed: Collection[str] = (),
    source_prompt: str | None = None,
    suffixes: tuple[str, str] = ("", ""),
) -> dict[str, list[str]]:
    """The texts of each prompt that a run embeds: one, or one per view; see `nfsd3d.views.prompts.PromptBank.build`."""
    words = FINE_VIEW_WORDS if settings.views == "fine" else VIEW_WORDS

    def views(text: str) -> list[str]:
        return [f"{text}, {view}" for view in words] if settings.view_dependent else [text] * len(VIEW_WORDS)

    better, worse = suffixes
    texts = {"cond": views(prompt), "uncond": [""], "neg": [negative_prompt]}
    further = {
        "plain": [prompt],
        "better": views(prompt + better),
        "worse": views(prompt + worse),
        "source_cond": views(source_prompt or ""),
    }
    return texts | {name: further[name] for name in sorted(set(needed) - texts.keys())}
