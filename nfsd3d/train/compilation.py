"""torch.compile for the prior's networks, and their warm-up before the first step.

Problem: a network compiles, and its CUDA graph is captured, when it first meets a batch size. NFSD's batch size varies
with the timesteps, so compiling would interrupt steps for minutes, and memory could run out in the middle of a run.
Idea: ``Method.batch_sizes`` lists every batch size that a method can need, the prior pads to a few of them, and the
warm-up runs each once, the largest first: the graphs of smaller batches reuse its memory.
Measurement: no step compiles again (tests/train/test_compilation.py turns recompilations into errors).
"""

import gc
import os
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from nfsd3d.config.schema import Config
from nfsd3d.distill.methods import Method
from nfsd3d.errors import InputError
from nfsd3d.generators.settings import LatentSettings
from nfsd3d.prior.base import Prior
from nfsd3d.prior.chunked import slices
from nfsd3d.prior.compiled.shapes import padded_batch_size
from nfsd3d.prior.diffusers_prior import DiffusersPrior
from nfsd3d.prior.families.table import PRESETS
from nfsd3d.prior.files.locate import EMBEDDED_PRIORS
from nfsd3d.settings.paths import user_cache
from nfsd3d.train.build import Parts
from nfsd3d.train.memory.chunking import ChunkSizes

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"

TRACED_AFTER = 30
"""Predictions after which a UNet is traced, which takes a second: a run of a few steps does without."""

IGNORED_WARNINGS = "Dynamo detected a call to a `functools.lru_cache`|The AccumulateGrad node's stream does not match"
"""Warnings of torch without consequences here: diffusers' check of torch's version during compilation, and the stream
of the gradient during capture.
"""


def cache_folder() -> Path:
    """The folder of compiled code unless ``TORCHINDUCTOR_CACHE_DIR`` is set; torch's default is a temporary folder,
    which does not survive a restart.
    """
    return user_cache() / "inductor"


# On import: torch's compiler, which loading a model imports, reads the variable then and fills it in.
os.environ.setdefault(CACHE_VARIABLE, str(cache_folder()))


def wants_compilation(config: Config) -> bool:
    """Whether ``machine.compile`` turns compilation on; ``auto``: for Stable Diffusion 1 and 2 on CUDA.

    On a CPU, and for the embedded model, compiling takes longer than it saves. For other families it was not tried.
    """
    choice = config.machine.compile
    if choice != "auto":
        return choice
    return config.machine.device != "cpu" and not _embedded(config) and config.prior.name not in PRESETS


def traces_unet(config: Config, method: Method) -> bool:
    """Whether the UNet is traced: the embedded model's on a CPU, with ``machine.compile=auto``, without VSD's LoRA.

    A larger network's operations take so long that the Python code between them does not count.
    """
    small = config.machine.device == "cpu" and _embedded(config)
    return config.machine.compile == "auto" and small and not method.needs_lora and not wants_compilation(config)


def _embedded(config: Config) -> bool:
    return config.prior.name in EMBEDDED_PRIORS and config.prior.model is None


def compile_prior(config: Config, parts: Parts, chunks: ChunkSizes, log: Callable[[str], None]) -> None:
    """Compiles the networks that ``machine.compile`` asks for, at every shape of the steps; ``log`` gets the duration.

    Code from the cache folder (see :func:`cache_folder`) loads in seconds. VSD's UNet is not compiled: its LoRA is
    switched on and off several times a step, and every switch would recompile it. An encoder is not compiled if it is
    checkpointed, gets a step's images in several chunks, or is not used (latents). On a CPU the embedded model's UNet
    is traced (see :func:`traces_unet`), in a second.

    Raises:
        InputError: compiling fails, and ``machine.compile`` is true. With ``auto`` the run continues uncompiled.
    """
    prior, method = parts.prior, parts.distillation.method
    if traces_unet(config, method) and isinstance(prior, DiffusersPrior):
        prior.trace(
            after=TRACED_AFTER,
            on_failure=lambda error: log(f"machine.compile=auto: not traced ({_reason(error)}); steps are slower"),
        )
        return
    views, at_once = config.train.batch_size, chunks.unet_batch_size
    unet, encoder = compiles_unet(config, method), compiles_encoder(config, chunks)
    networks = " and the ".join(["UNet"] * unet + ["encoder"] * encoder)
    if not networks or not isinstance(prior, DiffusersPrior):
        return
    log(f"compiling the {networks}; minutes the first time, seconds from the cache after")
    started = time.monotonic()
    sizes = compiled_batch_sizes(method.batch_sizes(views, perp_neg=config.prompts.perp_neg), views, at_once)
    # Shapes beyond the limit would run uncompiled without a warning.
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, len(sizes) + 3)
    failure = None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", IGNORED_WARNINGS)
            prior.compile(batch_unit=views, unet=unet, encoder=encoder)
            if encoder:
                warm_up_encoder(prior, views, without_gradient=method.needs_source)
            if unet:
                warm_up_unet(prior, sizes, at_once)
    except Exception as error:  # compilers raise many kinds; memory may run out, too
        release_compiled(prior)
        failure = _reason(error)
        if config.machine.compile != "auto":
            raise InputError(f"machine.compile=true: {failure}; set machine.compile=false") from error
    if failure is not None:
        gc.collect()  # outside of except: the traceback refers to tensors
        torch.cuda.empty_cache()
        log(f"machine.compile=auto: not compiled ({failure}); steps are slower")
        return
    log(f"compiled in {time.monotonic() - started:.0f} s (kept in {os.environ[CACHE_VARIABLE]})")


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def compiles_unet(config: Config, method: Method) -> bool:
    """Whether the UNet is compiled; VSD's is not, see :func:`compile_prior`."""
    return wants_compilation(config) and not method.needs_lora


def compiles_encoder(config: Config, chunks: ChunkSizes) -> bool:
    """Whether the encoder is compiled: in training from images, on all of a step's at once, not checkpointed."""
    views = config.train.batch_size
    whole = not chunks.checkpoint_encoder and (chunks.unet_batch_size or views) >= views
    return wants_compilation(config) and whole and not isinstance(config.generator, LatentSettings)


def release_compiled(prior: Prior) -> None:
    """Frees compiled code and the memory of captured CUDA graphs; the prior then runs uncompiled."""
    if isinstance(prior, DiffusersPrior) and prior.is_compiled:
        prior.compile_nothing()
        torch.compiler.reset()


def compiled_batch_sizes(counts: Iterable[int], views: int, at_once: int | None) -> list[int]:
    """The batch sizes for which the UNet is compiled: ``counts`` in chunks of ``at_once``, padded as the prior does."""
    sizes = {part.stop - part.start for count in counts for part in slices(count, at_once)}
    return sorted({padded_batch_size(size, views, at_once) for size in sizes})


def warm_up_encoder(prior: DiffusersPrior, count: int, *, without_gradient: bool) -> None:
    """Runs the encoder once on ``count`` images, forward and backward; ``without_gradient`` also without."""
    size = prior.image_size
    image = torch.full((count, 3, size, size), 0.5, device=prior.device, requires_grad=True)
    prior.encode(image).sum().backward()
    if without_gradient:
        with torch.no_grad():
            prior.encode(image.detach())


def warm_up_unet(prior: DiffusersPrior, batch_sizes: Iterable[int], at_once: int | None) -> None:
    """Runs the UNet once at each batch size, in calls of at most ``at_once``."""
    for size in sorted(batch_sizes, reverse=True):  # smaller batches reuse the memory of the largest
        z_t = torch.zeros(size, *prior.latent_shape, device=prior.device)
        t = prior.schedule.time(torch.zeros(size, dtype=torch.int64))
        prior.predict_eps(z_t, t, prior.blank_context(size), at_most=at_once)
