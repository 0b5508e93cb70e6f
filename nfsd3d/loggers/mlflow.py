"""MLflow: settings, numbers, previews and results.

MLflow's own variables choose where they go: ``MLFLOW_TRACKING_URI`` and ``MLFLOW_EXPERIMENT_NAME``.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfsd3d.callbacks.callback import Callback, LiveRun
from nfsd3d.config.trust import leaves
from nfsd3d.errors import InputError
from nfsd3d.loggers.results import finite_numbers, results_of

if TYPE_CHECKING:
    from nfsd3d.visualize.image_grid import Image

EXPERIMENT = "nfsd3d"

TAG = "nfsd3d.run"
"""The tag with the id of a run, by which a resumed run finds its own."""

BATCH = 500
"""Numbers that are sent together; MLflow takes at most 1000."""

BATCH_S = 10.0
"""Seconds after which fewer are sent."""

PARAMETERS = 100
"""Settings that are sent together: MLflow's limit."""

LONGEST = 6000
"""Characters of a setting: MLflow's limit."""

STATUS = {"done": "FINISHED", "interrupted": "KILLED"}


class MLflow(Callback):
    """A run of MLflow, by its client alone: it leaves the active run of a notebook as it is; final."""

    def __init__(self) -> None:
        self._client: Any = None
        self._run = ""
        self._waiting: list[Any] = []
        self._sent = 0.0

    def on_start(self, run: LiveRun) -> None:
        """Begins or resumes it.

        Raises:
            InputError: the experiment is deleted.
            Exception: the tracking server cannot be reached.
        """
        from mlflow import MlflowClient
        from mlflow.entities import Param

        client, config, self._directory = MlflowClient(), run.config, run.directory
        experiment = _experiment(client, os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT))
        own = run.id
        before = client.search_runs([experiment], f"tags.`{TAG}` = '{own}'", max_results=1) if own else []
        if before:
            self._run = before[0].info.run_id
            client.set_terminated(self._run, "RUNNING")
        else:
            self._run = client.create_run(experiment, tags={TAG: own or ""}, run_name=config.prompt).info.run_id
            values = {key: json.dumps(value)[:LONGEST] for key, value in leaves(config.to_dict()).items()}
            parameters = iter(Param(key, value) for key, value in values.items())
            while part := list(islice(parameters, PARAMETERS)):
                client.log_batch(self._run, params=part)
        self._client, self._sent = client, time.monotonic()

    def on_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends the numbers in batches."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._waiting += [Metric(name, value, now, step) for name, value in finite_numbers(metrics).items()]
        if len(self._waiting) >= BATCH or time.monotonic() - self._sent >= BATCH_S:
            self._send()

    def on_preview(self, step: int, image: Image, path: Path) -> None:
        """Sends the image grid."""
        self._client.log_artifact(self._run, str(path), "previews")

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Sends the results."""
        if self._client is None:
            return
        self._send()
        for path in results_of(self._directory, summary):
            folder = path.parent.relative_to(self._directory).as_posix()
            self._client.log_artifact(self._run, str(path), None if folder == "." else folder)
        self._client.set_terminated(self._run, STATUS.get(summary.get("status", ""), "FAILED"))

    def _send(self) -> None:
        for first in range(0, len(self._waiting), BATCH):
            self._client.log_batch(self._run, metrics=self._waiting[first : first + BATCH])
        self._waiting.clear()
        self._sent = time.monotonic()


def _experiment(client: Any, name: str) -> str:
    """The id of the experiment of this name, which is made if there is none."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # another run has made it meanwhile
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise InputError(
            f"logger=mlflow: its experiment {name} is deleted; restore it with: mlflow experiments restore "
            f"--experiment-id {found.experiment_id}, or choose another by MLFLOW_EXPERIMENT_NAME"
        )
    return str(found.experiment_id)
