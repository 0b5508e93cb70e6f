"""How the numba kernels of this package are compiled and called."""

import threading
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch

# Reassociation and fused multiply-adds, but not "no NaNs" and "no infinities": a NaN must stay visible.
FAST = frozenset({"reassoc", "contract", "arcp", "nsz"})

# OpenMP threads spin for milliseconds after a kernel, which starves torch's own OpenMP threads (a training step was
# measured to take up to ten times as long on two busy cores). The workqueue layer's threads sleep; but it aborts the
# process when two Python threads use it at once, hence the lock. NUMBA_THREADING_LAYER overrides the choice.
if numba.config.THREADING_LAYER == "default":
    numba.config.THREADING_LAYER = "workqueue"
_ONE_AT_A_TIME = threading.Lock()


def kernel(*, exact: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that compiles a parallel kernel at its first call and keeps the machine code on disk.

    ``exact`` keeps IEEE arithmetic as written, so that a torch reference gives the same bits. The cache lies beside the
    source, else in the user's cache folder, or where ``NUMBA_CACHE_DIR`` says; where none of them can be written,
    each process compiles anew (about a second).
    """
    options: dict[str, Any] = {"parallel": True, "fastmath": False if exact else set(FAST), "error_model": "numpy"}

    def compile_lazily(function: Callable[..., None]) -> Callable[..., None]:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError as error:
            if "cannot cache function" not in str(error):
                raise
            return numba.njit(**options)(function)

    return compile_lazily


def launch(compiled: Callable[..., None], *arguments: torch.Tensor | np.generic | float) -> None:
    """Runs a kernel on torch's number of threads; tensors are passed as numpy views (CPU, contiguous)."""
    views = [value.detach().numpy() if isinstance(value, torch.Tensor) else value for value in arguments]
    with _ONE_AT_A_TIME:
        numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
        compiled(*views)
