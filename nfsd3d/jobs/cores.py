"""CPU affinity: the cores that this process may use, and their division among several processes."""

import itertools
import os
from collections.abc import Sequence

from nfsd3d.config.hardware import visible_gpus
from nfsd3d.errors import InputError

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def usable_cores() -> list[int]:
    """The indices of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def shares(cores: Sequence[int], workers: int) -> list[list[int]]:
    """The cores of each of ``workers`` processes: disjoint and equally many.

    Raises:
        InputError: more workers than cores.
    """
    if workers > len(cores):
        raise InputError(f"workers {workers}: there are {len(cores)} cores, and a job needs one; use at most that many")
    each = len(cores) // workers
    return [list(cores[index * each : (index + 1) * each]) for index in range(workers)]


def threads(count: int) -> dict[str, str]:
    """The environment variables that limit a process to ``count`` threads."""
    return dict.fromkeys(_THREADS, str(count))


def keep_to(cores: Sequence[int]) -> None:
    """Pins this process to ``cores``, where the system supports it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def gpu_names() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them, found without torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, itertools.count()) if chosen is None else (name.strip() for name in chosen.split(","))
    return list(itertools.islice(names, visible_gpus()))


def gpu_shares(workers: int, gpus: float | None) -> list[list[str] | None]:
    """The names of the GPUs of each worker; None where there are none to share, so that it sees all of this process.

    ``gpus`` is how many each has, other ones each; None: an equal share, and one in turn where there are too few.

    Raises:
        InputError: more than there are.
    """
    available = gpu_names()
    if gpus is None and not available:
        return [None] * workers
    each = max(1, len(available) // workers) if gpus is None else int(gpus)
    if gpus is not None and workers * each > len(available):
        raise InputError(
            f"gpus={each}: {workers} workers need {workers * each} GPUs and {len(available)} are visible; "
            "lower workers or gpus"
        )
    return [[available[(worker * each + index) % len(available)] for index in range(each)] for worker in range(workers)]
