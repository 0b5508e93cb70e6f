"""torch.compile for the prior's networks: whether, and before the first step instead of within it."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from nfsd3d.errors import InputError
from nfsd3d.prior.pieces import parts as rows_in_parts
from nfsd3d.prior.stable_diffusion import StableDiffusionPrior, padded_rows
from nfsd3d.settings import Config
from nfsd3d.train.budget import rows_at_most
from nfsd3d.train.build import Parts
from nfsd3d.train.pieces import Pieces

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def wants_compilation(config: Config) -> bool:
    """What ``machine.compile`` means: ``auto`` is on for Stable Diffusion on CUDA.

    On a CPU, and for the embedded model, compiling takes longer than it saves.
    """
    choice = config.machine.compile
    if choice != "auto":
        return choice
    embedded = config.prior.name == "shapes" and config.prior.model is None
    return config.machine.device != "cpu" and not embedded


def compile_prior(config: Config, parts: Parts, pieces: Pieces, say: Callable[[str], None]) -> None:
    """Compiles what ``machine.compile`` asks for, at every shape that the steps have, and tells how long it took.

    Code that was compiled before comes from the cache folder (see :func:`cache_folder`), in seconds. The UNet of VSD
    stays as it is: its adaptation is switched on and off many times a step, and every switch would compile anew.

    Raises:
        InputError: compiling fails, and ``machine.compile`` is true. With auto the run goes on without.
    """
    prior = parts.prior
    if not wants_compilation(config) or not isinstance(prior, StableDiffusionPrior):
        return
    method, views = parts.distillation.method, config.train.batch_size
    os.environ.setdefault(CACHE_VARIABLE, str(cache_folder()))
    unet = not method.needs_particle
    say(f"compiling the {'UNet and the ' if unet else ''}encoder; minutes the first time, seconds from the cache after")
    started = time.monotonic()
    most = rows_at_most(method, views, perp_neg=config.prompts.perp_neg)
    prior.compile(row_unit=views, unet=unet)
    try:
        warm_up(prior, views, compiled_rows(views, most, pieces.rows_at_once) if unet else [], pieces)
    except RuntimeError as error:  # torch's compilers raise what derives from it
        prior.compile_nothing()
        reason = str(error).strip().splitlines()[0]
        if config.machine.compile != "auto":
            raise InputError(f"machine.compile=true: {reason}; set machine.compile=false") from error
        say(f"machine.compile=auto: not compiled ({reason}); steps are slower")
        return
    say(f"compiled in {time.monotonic() - started:.0f} s (kept in {os.environ[CACHE_VARIABLE]})")


def cache_folder() -> Path:
    """Where compiled code is kept, unless ``TORCHINDUCTOR_CACHE_DIR`` says otherwise: not in a folder for what is
    temporary, which is torch's choice.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "nfsd3d" / "inductor"


def compiled_rows(views: int, most: int, at_once: int | None) -> list[int]:
    """The numbers of rows that the UNet is given in steps of ``views`` whose branches need at most ``most``."""
    counts = range(views, most + 1, views)
    found = {part.stop - part.start for count in counts for part in rows_in_parts(count, at_once)}
    return sorted({padded_rows(count, views) for count in found})


def warm_up(prior: StableDiffusionPrior, views: int, rows: list[int], pieces: Pieces) -> None:
    """Runs UNet and encoder once at each shape; nobody's random numbers or evaluations are touched."""
    evaluations, device = prior.evaluations, prior.device
    size = prior.image_size
    for part in {part.stop - part.start for part in rows_in_parts(views, pieces.rows_at_once)}:
        image = torch.full((part, 3, size, size), 0.5, device=device, requires_grad=True)
        prior.encode(image, checkpoint=pieces.checkpoint_encoder).sum().backward()
    for count in rows:
        # Twice: the first run after compiling is followed by the one that is recorded.
        for _ in range(2):
            prior.predict_eps(
                torch.zeros(count, *prior.latent_shape, device=device),
                torch.zeros(count, dtype=torch.int64),
                torch.zeros(count, *prior.context_shape, device=device),
            )
    prior.evaluations = evaluations
