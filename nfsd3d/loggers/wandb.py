"""Weights & Biases: numbers, previews, the turntable and the mesh.

W&B's own variables choose where they go: ``WANDB_PROJECT``, ``WANDB_ENTITY``, ``WANDB_MODE=offline``. Its local files
are in ``wandb/`` of the run directory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfsd3d.callbacks.callback import Callback, LiveRun
from nfsd3d.loggers.results import finite_numbers, results_of

if TYPE_CHECKING:
    from nfsd3d.visualize.image_grid import Image

PROJECT = "nfsd3d"


class WeightsAndBiases(Callback):
    """A run of W&B with the id of the run, so that a resumed run goes on in it; final."""

    def __init__(self) -> None:
        self._run: Any = None

    def on_start(self, run: LiveRun) -> None:
        """Begins or resumes it.

        Raises:
            Exception: W&B is not logged in, or cannot be reached.
        """
        import wandb

        self._directory = run.directory
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=run.directory,
            id=run.id,
            name=run.config.prompt,
            group=run.config.distill.method,
            config=run.config.to_dict(),
            resume="allow",
            reinit="create_new",  # a notebook may have a run of its own
            settings=wandb.Settings(console="off"),
        )
        # W&B drops what comes with an earlier step, as after a divergence.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def on_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queues the numbers; W&B sends them in batches."""
        self._run.log({"step": step, **finite_numbers(metrics)})

    def on_preview(self, step: int, image: Image, path: Path) -> None:
        """Queues the image grid."""
        import wandb

        self._run.log({"step": step, "preview": wandb.Image(image)})

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Sends the results, and waits until everything was sent."""
        import wandb

        if self._run is None:
            return
        kinds = {".mp4": wandb.Video, ".glb": wandb.Object3D, ".png": wandb.Image}
        for path in results_of(self._directory, summary):
            if path.suffix in kinds:
                self._run.log({path.stem if path.suffix != ".png" else "views": kinds[path.suffix](str(path))})
        self._run.summary.update({name: summary.get(name) for name in ("status", "reason", "seconds", "steered")})
        self._run.finish(exit_code=0 if summary.get("status") == "done" else 1)
