"""The families by the name of their preset, ``prior=NAME``."""

from dataclasses import dataclass

from nfsd3d.prior.families.auraflow import AURAFLOW
from nfsd3d.prior.families.base import Family
from nfsd3d.prior.families.chroma import CHROMA
from nfsd3d.prior.families.cogview4 import COGVIEW4
from nfsd3d.prior.families.kolors import KOLORS
from nfsd3d.prior.families.lumina2 import LUMINA2
from nfsd3d.prior.families.pixart import PIXART
from nfsd3d.prior.families.prx import PRX
from nfsd3d.prior.families.sana import SANA
from nfsd3d.prior.families.sd3 import SD3
from nfsd3d.prior.families.sdxl import SDXL
from nfsd3d.prior.families.zimage import ZIMAGE

FAMILIES: dict[str, Family] = {
    "sdxl": SDXL,
    "sd3": SD3,
    "sana": SANA,
    "pixart": PIXART,
    "prx": PRX,
    "auraflow": AURAFLOW,
    "lumina2": LUMINA2,
    "zimage": ZIMAGE,
    "chroma": CHROMA,
    "cogview4": COGVIEW4,
    "kolors": KOLORS,
}
"""Families whose denoiser is conditioned on more than token states, or is no UNet."""


@dataclass(frozen=True)
class Preset:
    """A model for ``prior=NAME``: its ``family``, and hub ids that are tried in order."""

    family: str
    hub_ids: tuple[str, ...]


PRESETS: dict[str, Preset] = {
    "sdxl": Preset("sdxl", ("stabilityai/stable-diffusion-xl-base-1.0",)),
    "sd3": Preset("sd3", ("stabilityai/stable-diffusion-3-medium-diffusers",)),
    "sd35": Preset("sd3", ("stabilityai/stable-diffusion-3.5-medium", "ckpt/stable-diffusion-3.5-medium")),
    "sana": Preset("sana", ("Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",)),
    "pixart": Preset("pixart", ("PixArt-alpha/PixArt-Sigma-XL-2-512-MS", "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS")),
    "prx": Preset("prx", ("Photoroom/prx-512-t2i-sft",)),
    "auraflow": Preset("auraflow", ("fal/AuraFlow",)),
    "lumina2": Preset("lumina2", ("Alpha-VLLM/Lumina-Image-2.0",)),
    "zimage": Preset("zimage", ("Tongyi-MAI/Z-Image",)),
    "chroma": Preset("chroma", ("lodestones/Chroma1-HD",)),
    "kolors": Preset("kolors", ("Kwai-Kolors/Kolors-diffusers",)),
    "cogview4": Preset("cogview4", ("THUDM/CogView4-6B", "zai-org/CogView4-6B")),
}
"""Presets of the families; the ids are those of diffusers' own examples, and were not downloaded from here."""

SUPPORTED = (
    "which this preset does not load; use a Stable Diffusion 1 or 2 model, for example prior=sd15, or the preset of "
    f"its family, if there is one: {', '.join(PRESETS)}"
)
"""The end of every message about a family without a row."""


def preset_of(pipeline: object) -> tuple[str, Family] | None:
    """(preset, family) of models with the pipeline of this class name; None if no family has it."""
    for name, preset in PRESETS.items():
        if pipeline in FAMILIES[preset.family].pipelines:
            return name, FAMILIES[preset.family]
    return None
