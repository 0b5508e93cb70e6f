"""A surface laid out flat in charts, for a texture."""

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nfsd3d.export.isosurface import Surface
from nfsd3d.export.mesh import FloatArray

WORKER = Path(__file__).with_name("unwrap_worker.py")
SECONDS_BETWEEN_LOOKS = 0.2


class UnwrapFailed(RuntimeError):
    """There are no charts for this surface: it took too long, or xatlas gave up. The message says which."""


@dataclass(frozen=True)
class Charts:
    """``uv`` [T,2] in [0,1], x to the right and y downwards in the texture; ``faces`` [F,3] of texture vertices.

    The faces are the surface's, in their order. A texture vertex belongs to the surface's vertex ``source`` [T]; along
    the seams between charts several belong to one.
    """

    uv: FloatArray
    source: NDArray[np.int32]
    faces: NDArray[np.int32]


def unwrap(surface: Surface, size: int, timeout: float, on_wait: Callable[[], None] | None = None) -> Charts:
    """Charts of ``surface`` for a texture of ``size``^2 texels, by xatlas, in at most ``timeout`` seconds.

    xatlas runs in a process of its own, because nothing else can stop it: on some surfaces it does not come to an end.
    ``on_wait`` is called now and then meanwhile; what it raises ends the process too.

    Raises:
        UnwrapFailed: the time is up, or xatlas fails.
    """
    with tempfile.TemporaryDirectory(prefix="nfsd3d-") as folder:
        given, result = Path(folder) / "surface.npz", Path(folder) / "charts.npz"
        np.savez(given, vertices=surface.vertices, faces=surface.faces.astype(np.uint32), size=size)
        _run([sys.executable, str(WORKER), str(given), str(result)], timeout, on_wait)
        with np.load(result) as charts:
            uv, source, faces = (charts[name] for name in ("uv", "source", "faces"))
    if not np.array_equal(source[faces], surface.faces):
        raise UnwrapFailed("xatlas returned other triangles than it was given")
    return Charts(uv.astype(np.float32), source.astype(np.int32), faces.astype(np.int32))


def _run(command: list[str], timeout: float, on_wait: Callable[[], None] | None) -> None:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)
        end = time.monotonic() + timeout
        try:
            while process.poll() is None:
                if time.monotonic() >= end:
                    raise UnwrapFailed(f"unwrapping was not done after {timeout:g} s")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(SECONDS_BETWEEN_LOOKS)
                if on_wait is not None:
                    on_wait()
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            log.seek(0)
            lines = log.read().decode(errors="replace").strip().splitlines()
            raise UnwrapFailed(f"xatlas failed ({lines[-1] if lines else f'exit status {process.returncode}'})")
