"""The registry of priors for ``prior=NAME``: presets of this package, and plug-ins.

Importing this file does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nfsd3d.errors import InputError
from nfsd3d.plugins.table import Table
from nfsd3d.prior.deferred_imports import import_diffusers
from nfsd3d.prior.families.table import PRESETS
from nfsd3d.prior.files.download import fetch
from nfsd3d.prior.files.locate import EMBEDDED_PRIORS, ModelSource, locate
from nfsd3d.prior.files.locate_family import locate_family

if TYPE_CHECKING:
    import torch

    from nfsd3d.prior.base import Prior
    from nfsd3d.prior.settings import PriorSettings


def without_files(settings: PriorSettings) -> ModelSource | None:
    """None: the prior has no model files to find, download or check."""
    return None


@dataclass(frozen=True)
class PriorRow:
    """A prior that a run can choose.

    Args:
        build: (settings of ``prior``, device, dtype of the networks) -> the frozen prior.
        locate: settings -> its model files, found without a download; None where it has none. Raises `InputError` for
            settings that it cannot use, before torch is imported.
        recipe: the preset whose recipe (resolution, steps, cameras, regularisers) a run starts from.
    """

    build: Callable[[PriorSettings, str, torch.dtype], Prior]
    locate: Callable[[PriorSettings], ModelSource | None] = without_files
    recipe: str = "shapes"


def no_lora_network(method: str, prior: str) -> InputError:
    """The error of a ``method`` with a LoRA network of its own (VSD) on a ``prior`` without a diffusers UNet for it."""
    return InputError(
        f"distill={method}: adapts the UNet of Stable Diffusion 1 or 2, which prior={prior} has not; choose another "
        "method (distill=asd needs no second network), or prior=shapes, sd15 or sd21"
    )


def locate_diffusers(settings: PriorSettings) -> ModelSource:
    """The files of a preset, or of the model that replaces it; see `nfsd3d.prior.files.locate.locate`."""
    return locate(
        settings.name,
        settings.model,
        settings.offline,
        vae=settings.vae,
        layout=settings.layout,
        lora=settings.lora,
    )


def build_diffusers(settings: PriorSettings, device: str, dtype: torch.dtype) -> Prior:
    """A latent diffusion model in the layout of diffusers, downloaded if need be."""
    from nfsd3d.prior.load_prior import load_prior

    import_diffusers()
    return load_prior(
        fetch(locate_diffusers(settings)), device, dtype, clock=settings.clock, image_size=settings.image_size
    )


def build_family(settings: PriorSettings, device: str, dtype: torch.dtype) -> Prior:
    """A model of one of the families, downloaded if need be."""
    from nfsd3d.prior.load_prior import load_family_prior

    import_diffusers()
    files = fetch(locate_family(settings))
    return load_family_prior(
        files, device, dtype, clock=settings.clock, image_size=settings.image_size, cache=settings.cache
    )


PRIORS: dict[str, PriorRow] = {
    name: PriorRow(build_diffusers, locate_diffusers, recipe=name)
    for name in (*EMBEDDED_PRIORS, "sd15", "sd21", "sd21-768")
} | {name: PriorRow(build_family, locate_family, recipe=name) for name in PRESETS}
"""The presets; `register` adds other priors."""

TABLE: Table[PriorRow] = Table(
    "prior", "preset", "nfsd3d.priors", PRIORS, PriorRow, remedy=", or give prior.model=FOLDER or owner/name"
)
"""All priors: presets, registered ones, and those of installed packages."""

register = TABLE.register
unregister = TABLE.unregister
