"""How long the phases after training will take, for the remaining time that is shown."""

from __future__ import annotations

import time
from collections.abc import Callable

from nfsd3d.config.schema import Config
from nfsd3d.train.build import CONTACT_SHEET_VIEWS
from nfsd3d.train.previews import PREVIEW_VIEWS

PIXEL_S = {"cpu": 3e-6, "cuda": 1e-7}
"""Seconds for a pixel of a view with depth and normals, until the first preview has been timed."""

MESH_VIEWS = 47
"""A mesh takes about as long as so many views of export.resolution² pixels (two CPU cores: 9 s beside 13 s for 68)."""


class Outlook:
    """The estimated seconds of turntable and mesh; final.

    Args:
        turntable, mesh: pixels of all views, and of as many as take the time of a mesh; 0 if it is not asked for.
        preview: pixels of a preview.
        pixel_s: seconds for a pixel, until a preview was measured.
    """

    def __init__(self, turntable: int = 0, mesh: int = 0, preview: int = 1, pixel_s: float = 0.0) -> None:
        self._turntable, self._mesh, self._preview, self._pixel_s = turntable, mesh, preview, pixel_s

    @classmethod
    def of(cls, config: Config) -> Outlook:
        """That of a run."""
        export, views = config.export, CONTACT_SHEET_VIEWS + config.export.turntable_frames
        return cls(
            views * export.turntable_size**2 if export.turntable else 0,
            MESH_VIEWS * export.resolution**2 if export.mesh else 0,
            PREVIEW_VIEWS * config.train.preview_size**2,
            PIXEL_S["cpu" if config.machine.device == "cpu" else "cuda"],
        )

    def stopwatch(self) -> Callable[[], None]:
        """What a preview calls after each of its views, to be learnt from; the first one may compile kernels."""
        last: float | None = None

        def after_view() -> None:
            nonlocal last
            now = time.monotonic()
            if last is not None:
                self.measure(now - last)
            last = now

        return after_view

    def measure(self, view_s: float) -> None:
        """Learns from one view of a preview, which took so many seconds."""
        self._pixel_s = view_s * PREVIEW_VIEWS / self._preview

    @property
    def mesh(self) -> float:
        """Seconds for the mesh."""
        return self._mesh * self._pixel_s

    @property
    def whole_export(self) -> float:
        """Seconds for turntable and mesh."""
        return self.mesh + self._turntable * self._pixel_s
