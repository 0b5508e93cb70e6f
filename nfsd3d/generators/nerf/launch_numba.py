"""Compilation and launch of numba kernels: one set of compiler flags, an on-disk cache, and a lock around each call."""

import threading
from collections.abc import Callable

import numba
import numpy as np
import torch

# Reassociation and fused multiply-adds, but not "no NaNs" and "no infinities": a NaN must stay visible.
FAST = frozenset({"reassoc", "contract", "arcp", "nsz"})

# Design note. Problem: OpenMP threads spin for milliseconds after a kernel, which starves torch's own OpenMP threads; a
# training step on two busy cores was measured to take up to ten times as long. Idea: the workqueue layer, whose threads
# sleep. It aborts the process when two Python threads launch kernels at the same time, hence the lock.
# NUMBA_THREADING_LAYER in the environment overrides the choice.
if numba.config.THREADING_LAYER == "default":
    numba.config.THREADING_LAYER = "workqueue"
_LAUNCH_LOCK = threading.Lock()


def kernel(*, exact: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that compiles a parallel kernel at its first call, and caches the machine code on disk.

    ``exact`` keeps IEEE arithmetic as written, so that a torch reference gives the same bits. The cache is beside the
    source, else in the user's cache folder, or where ``NUMBA_CACHE_DIR`` says. If none of them is writable, each
    process compiles the kernel again (about a second).
    """
    options = {"parallel": True, "fastmath": False if exact else set(FAST), "error_model": "numpy"}

    def compile_lazily(function: Callable[..., None]) -> Callable[..., None]:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError as error:
            if "cannot cache function" not in str(error):
                raise
            return numba.njit(**options)(function)

    return compile_lazily


def launch(compiled: Callable[..., None], *arguments: torch.Tensor | np.generic | float) -> None:
    """Runs a kernel with torch's number of threads; tensors (CPU, contiguous) are passed as numpy views."""
    views = [value.detach().numpy() if isinstance(value, torch.Tensor) else value for value in arguments]
    with _LAUNCH_LOCK:
        numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
        compiled(*views)
