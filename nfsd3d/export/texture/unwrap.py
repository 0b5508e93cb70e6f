"""UV unwrapping of a surface into texture charts, by xatlas in a process with a time limit."""

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

from nfsd3d.export import unit
from nfsd3d.export.isosurface import Surface
from nfsd3d.generators.mesh.surface import FloatArray

WORKER = Path(__file__).with_name("unwrap_worker.py")
POLL_SECONDS = 0.2


class UnwrapFailed(RuntimeError):
    """The surface could not be unwrapped: the time limit was exceeded, or xatlas failed. The message says which."""


@dataclass(frozen=True)
class Charts:
    """``uv`` [T,2] in [0,1], x to the right and y downwards in the texture; ``faces`` [F,3] of texture vertices.

    The faces are the surface's, in the same order. ``source`` [T] is the surface vertex of each texture vertex; along
    the seams between charts, several texture vertices share one.
    """

    uv: FloatArray
    source: NDArray[np.int32]
    faces: NDArray[np.int32]


def unwrap(surface: Surface, size: int, timeout: float, on_wait: Callable[[], None] | None = None) -> Charts:
    """Charts of ``surface`` for a texture of ``size``^2 texels, by xatlas, in at most ``timeout`` seconds.

    xatlas runs in a separate process, because on some surfaces it does not terminate and cannot be interrupted. It gets
    the surface in a unit of its size, because triangles below an absolute area would have none in the texture.
    ``on_wait`` is called every 0.2 s meanwhile; an exception that it raises kills the process, too.

    Raises:
        UnwrapFailed: the time limit is exceeded, or xatlas fails.
    """
    with tempfile.TemporaryDirectory(prefix="nfsd3d-") as folder:
        given, result = Path(folder) / "surface.npz", Path(folder) / "charts.npz"
        vertices = (surface.vertices * unit.factor(surface.vertices)).astype(np.float32)
        np.savez(given, vertices=vertices, faces=surface.faces.astype(np.uint32), size=size)
        _run([sys.executable, str(WORKER), str(given), str(result)], timeout, on_wait)
        with np.load(result) as charts:
            uv, source, faces = (charts[name] for name in ("uv", "source", "faces"))
    if not np.array_equal(source[faces], surface.faces):
        raise UnwrapFailed("xatlas returned other triangles than it was given")
    if not np.isfinite(uv).all():
        raise UnwrapFailed("xatlas gave no place in the texture to a part of the surface")
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
                    process.wait(POLL_SECONDS)
                if on_wait is not None:
                    on_wait()
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            log.seek(0)
            lines = log.read().decode(errors="replace").strip().splitlines()
            raise UnwrapFailed(f"xatlas failed ({lines[-1] if lines else f'exit status {process.returncode}'})")
