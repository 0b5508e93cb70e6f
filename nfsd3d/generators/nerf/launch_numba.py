"""Compilation and launch of numba kernels: one set of compiler flags, an on-disk cache, and a lock around each call."""

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
import torch

# Reassociation and fused multiply-adds, but not "no NaNs" and "no infinities": a NaN must stay visible.
FAST = frozenset({"reassoc", "contract", "arcp", "nsz"})


def _finds_torchs_openmp() -> bool:
    """Whether numba's OpenMP layer finds its functions in torch's OpenMP library, which torch has loaded globally."""
    try:
        torchs = ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libtorch_cpu.so")).GOMP_parallel
        return _address(torchs) == _address(ctypes.CDLL(None).GOMP_parallel)
    except (AttributeError, OSError, TypeError):  # another system, or another OpenMP
        return False


def _address(function: object) -> int | None:
    return ctypes.cast(function, ctypes.c_void_p).value  # type: ignore[arg-type]


# Design note. Problem: OpenMP threads spin for milliseconds after a kernel. If numba has threads of its own, of
# whatever kind, on the same cores, they and torch's starve each other: with two threads rendering took as long as
# with one. Idea: one pool for both. numba's OpenMP layer finds GNU's functions in the library that torch has loaded
# before its own, so its kernels run on torch's threads (rendering in two thirds of the time, docs/benchmarks.md).
# Where that is not so, or without that layer, the workqueue layer, whose threads sleep. It aborts the process when
# two Python threads launch kernels at the same time, hence the lock. NUMBA_THREADING_LAYER or
# NUMBA_THREADING_LAYER_PRIORITY in the environment override the choice.
if numba.config.THREADING_LAYER == "default" and "NUMBA_THREADING_LAYER_PRIORITY" not in os.environ:
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

    A kernel that is an inner function may use compiled functions of the module, but none of the function around it: its
    key in the cache would hold a number that is new in each process (numba issue 6264), so that each compiles it again
    and adds a file.
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
    threads = torch.get_num_threads()
    with _LAUNCH_LOCK:
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        compiled(*views)
    if torch.get_num_threads() != threads:  # its OpenMP layer sets torch's number to its own when it starts
        torch.set_num_threads(threads)
