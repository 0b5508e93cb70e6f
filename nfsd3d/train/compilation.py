"""torch.compile for the prior's networks: whether, and before the first step instead of within it."""

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
from nfsd3d.prior.chunked import parts as rows_in_parts
from nfsd3d.prior.schedule import NOISING_BRANCHES
from nfsd3d.prior.stable_diffusion import StableDiffusionPrior, padded_rows
from nfsd3d.train.build import Parts
from nfsd3d.train.memory.chunking import ChunkSizes

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


IGNORED_WARNINGS = (
    "Dynamo detected a call to a `functools.lru_cache`",
    "The AccumulateGrad node's stream does not match",
)
"""Warnings of torch's while it compiles and records: of diffusers asking for torch's version, and of a gradient from
the stream in which a recording is made.
"""


def cache_folder() -> Path:
    """Where compiled code is kept, unless ``TORCHINDUCTOR_CACHE_DIR`` says otherwise: not in a folder for what is
    temporary, which is torch's choice.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "nfsd3d" / "inductor"


# Now: what of torch compiles asks for the variable when it is imported, which loading a model does, and fills it in.
os.environ.setdefault(CACHE_VARIABLE, str(cache_folder()))


def wants_compilation(config: Config) -> bool:
    """What ``machine.compile`` means: ``auto`` is on for Stable Diffusion on CUDA.

    On a CPU, and for the embedded model, compiling takes longer than it saves.
    """
    choice = config.machine.compile
    if choice != "auto":
        return choice
    embedded = config.prior.name == "shapes" and config.prior.model is None
    return config.machine.device != "cpu" and not embedded


def compile_prior(config: Config, parts: Parts, chunks: ChunkSizes, say: Callable[[str], None]) -> None:
    """Compiles what ``machine.compile`` asks for, at every shape that the steps have, and tells how long it took.

    Code that was compiled before comes from the cache folder (see :func:`cache_folder`), in seconds. The UNet of VSD
    stays as it is: its adaptation is switched on and off many times a step, and every switch would compile anew. So
    does an encoder that is checkpointed, or sees a step's images in parts, or that latents do without.

    Raises:
        InputError: compiling fails, and ``machine.compile`` is true. With auto the run goes on without.
    """
    prior = parts.prior
    if not wants_compilation(config) or not isinstance(prior, StableDiffusionPrior):
        return
    method, views = parts.distillation.method, config.train.batch_size
    unet, encoder = compiles_unet(method), compiles_encoder(config, chunks)
    networks = " and the ".join(name for name, wanted in (("UNet", unet), ("encoder", encoder)) if wanted)
    if not networks:
        return
    say(f"compiling the {networks}; minutes the first time, seconds from the cache after")
    started = time.monotonic()
    rows = compiled_rows(step_rows(method, views, perp_neg=config.prompts.perp_neg), views, chunks.unet_batch_size)
    # One shape more than the limit would run uncompiled, and nobody would be told.
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, len(rows) + 3)
    failure = None
    try:
        with warnings.catch_warnings():
            for message in IGNORED_WARNINGS:
                warnings.filterwarnings("ignore", message)
            prior.compile(row_unit=views, unet=unet, encoder=encoder)
            if encoder:
                warm_up_encoder(prior, views, without_gradient=method.needs_source)
            if unet:
                warm_up_unet(prior, rows, chunks.unet_batch_size)
    except Exception as error:  # compilers raise all kinds; memory may run out, too
        release_compiled(prior)
        failure = str(error).strip().partition("\n")[0] or type(error).__name__
        if config.machine.compile != "auto":
            raise InputError(f"machine.compile=true: {failure}; set machine.compile=false") from error
    if failure is not None:
        gc.collect()  # behind the handler: its exception holds on to tensors
        torch.cuda.empty_cache()
        say(f"machine.compile=auto: not compiled ({failure}); steps are slower")
        return
    say(f"compiled in {time.monotonic() - started:.0f} s (kept in {os.environ[CACHE_VARIABLE]})")


def compiles_unet(method: Method) -> bool:
    """Whether a method's UNet is compiled, where anything is."""
    return not method.needs_lora


def compiles_encoder(config: Config, chunks: ChunkSizes) -> bool:
    """Whether the encoder is compiled, where anything is."""
    at_once, views = chunks.unet_batch_size, config.train.batch_size
    whole = not chunks.checkpoint_encoder and (at_once is None or at_once >= views)
    return whole and not isinstance(config.generator, LatentSettings)


def release_compiled(prior: Prior) -> None:
    """Gives back what compiling took: code, and the memory of recorded graphs. The prior runs on uncompiled."""
    if isinstance(prior, StableDiffusionPrior) and prior.is_compiled:
        prior.compile_nothing()
        torch.compiler.reset()


def step_rows(method: Method, views: int, *, perp_neg: bool) -> set[int]:
    """All numbers of rows that steps of ``views`` may give the UNet in one call, without splitting and filling up.

    Of the method and of what follows it. The branches that are needed in every row are always there; of the others,
    Perp-Neg's among them, any number of rows; and a noising moves all latents or fewer.
    """
    found = set() if method.then is None else step_rows(method.then, views, perp_neg=perp_neg)
    branches = [branch for branch in method.branches if branch != "lora"]
    always = sum(branch not in method.active for branch in branches)
    most = len(branches) + (2 * len(method.condition_pairs) if perp_neg else 0)
    moved = {NOISING_BRANCHES[method.noising] * count for count in range(1, views + 1)}
    return found | set(range(max(always * views, 1), most * views + 1)) | (moved - {0})


def part_sizes(count: int, at_once: int | None) -> set[int]:
    """How many rows the networks are given together of ``count``."""
    return {part.stop - part.start for part in rows_in_parts(count, at_once)}


def compiled_rows(counts: Iterable[int], views: int, at_once: int | None) -> list[int]:
    """The shapes of the UNet for these numbers of rows, split into ``at_once`` and filled up as the prior does."""
    sizes = {size for count in counts for size in part_sizes(count, at_once)}
    return sorted({padded_rows(size, views, at_once) for size in sizes})


def warm_up_encoder(prior: StableDiffusionPrior, count: int, *, without_gradient: bool) -> None:
    """Runs the encoder once on ``count`` images, forward and backward; ``without_gradient`` also without."""
    size = prior.image_size
    image = torch.full((count, 3, size, size), 0.5, device=prior.device, requires_grad=True)
    prior.encode(image).sum().backward()
    if without_gradient:
        with torch.no_grad():
            prior.encode(image.detach())


def warm_up_unet(prior: StableDiffusionPrior, rows: Iterable[int], at_once: int | None) -> None:
    """Runs the UNet on each number of rows, at most ``at_once``; they do not count as evaluations."""
    evaluations, device = prior.evaluations, prior.device
    for count in sorted(rows, reverse=True):  # the fewer find room in the memory of the most
        prior.predict_eps(
            torch.zeros(count, *prior.latent_shape, device=device),
            torch.zeros(count, dtype=torch.int64),
            torch.zeros(count, *prior.context_shape, device=device),
            at_most=at_once,
        )
    prior.evaluations = evaluations
