"""Compilation and launch of numba kernels: one set of compiler flags, an on-disk cache, and a lock around each call."""

import ctypes
import threading
from collections.abc import Callable

import numba
import numpy as np
import torch

# Reassociation and fused multiply-adds, but not "no NaNs" and "no infinities": a NaN must stay visible.
FAST = frozenset({"reassoc", "contract", "arcp", "nsz"})


def _finds_torchs_openmp() -> bool:
    """Whether numba's OpenMP layer takes its functions from the library that torch has loaded for every one to find."""
    try:
        return torch.backends.openmp.is_available() and hasattr(ctypes.CDLL(None), "GOMP_parallel")
    except (OSError, TypeError):  # a system where libraries do not see each other's functions
        return False


# Design note. Problem: OpenMP threads spin for milliseconds after a kernel. If numba has threads of its own, of
# whatever kind, on the same cores, they and torch's starve each other: with two threads rendering took as long as
# with one. Idea: one pool for both. numba's OpenMP layer finds GNU's functions in the library that torch has loaded
# before its own, so its kernels run on torch's threads (rendering in two thirds of the time, docs/benchmarks.md).
# Where that is not so, or without that layer, the workqueue layer, whose threads sleep. It aborts the process when
# two Python threads launch kernels at the same time, hence the lock. NUMBA_THREADING_LAYER in the environment
# overrides the choice.
if numba.config.THREADING_LAYER == "default":
    if _finds_torchs_openmp():
        numba.config.THREADING_LAYER_PRIORITY = ["omp", "workqueue", "tbb"]
    else:
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
