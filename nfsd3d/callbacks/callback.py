"""Callbacks: user code that is called while a run trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfsd3d.callbacks.steering import Controls

if TYPE_CHECKING:
    from numpy import uint8
    from numpy.typing import NDArray

    from nfsd3d.callbacks.events import StepEvent
    from nfsd3d.config.schema import Config
    from nfsd3d.generators.base import ImageGenerator, SceneGenerator
    from nfsd3d.prior.base import Prior


@dataclass(frozen=True)
class LiveRun:
    """A run that trains, as callbacks see it.

    ``id`` is the run's own, which it keeps when it is resumed (None: a run of version 0.1). ``generator`` and ``prior``
    belong to the training: read them within a callback only. ``finished`` steps were done before, by a run that is
    resumed. ``controls`` pause, steer, save and stop it, from other threads too.
    """

    id: str | None
    directory: Path
    config: Config
    generator: SceneGenerator | ImageGenerator
    prior: Prior
    finished: int
    controls: Controls


class Callback:
    """Is called in the training's own thread; derive from it and override what you need.

    The methods do nothing here. An error of a callback saves a checkpoint and ends the run; the run can be resumed.
    After a divergence a run goes back to an earlier step and repeats the later ones.
    """

    def on_start(self, run: LiveRun) -> None:
        """Before the first step of this process."""

    def on_step(self, event: StepEvent) -> None:
        """After the optimiser's step."""

    def on_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """After every ``train.log_every`` steps and the last one: the numbers of ``metrics.jsonl``."""

    def on_preview(self, step: int, image: NDArray[uint8], path: Path) -> None:
        """After every ``train.preview_every`` steps and the last one: the image grid [H,W,3], and its file."""

    def on_checkpoint(self, step: int, path: Path) -> None:
        """After a checkpoint was saved; ``path`` is its JSON file."""

    def on_rollback(self, step: int, reason: str) -> None:
        """The run has diverged, and goes on from its checkpoint after ``step``."""

    def on_idle(self) -> None:
        """Again and again while the run is paused, and between the parts of the export."""

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """After the results, or the failure, were written; ``summary`` is that of ``summary.json``."""
