"""The families by the name of their preset, ``prior=NAME``."""

from nfsd3d.prior.families.auraflow import AURAFLOW
from nfsd3d.prior.families.base import Family
from nfsd3d.prior.families.chroma import CHROMA
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
}
"""Families whose denoiser is conditioned on more than token states, or is no UNet."""
