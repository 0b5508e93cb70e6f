"""TensorBoard events in ``tensorboard/`` of a run directory."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfsd3d.callbacks.callback import Callback, LiveRun

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


FOLDER = "tensorboard"


class TensorBoard(Callback):
    """Queues numbers for TensorBoard's thread; its errors are those of the next call; final."""

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None
        self._hook = threading.excepthook
        self._folder, self._last = Path(FOLDER), 0

    def on_start(self, run: LiveRun) -> None:
        """Opens a file of events; steps that are repeated replace the former ones."""
        self._folder, self._last = run.directory / FOLDER, run.config.train.steps
        # The thread's error is raised by the next call here; without this hook its traceback is printed besides.
        self._hook, threading.excepthook = threading.excepthook, self._on_thread_error
        try:
            self._open(run.finished)
        except BaseException:
            threading.excepthook = self._hook
            raise

    def on_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queues the numbers of ``step``; writes what is queued after the last one.

        Raises:
            OSError: TensorBoard could not write.
        """
        assert self._writer is not None
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        if step == self._last:
            self._writer.flush()

    def on_rollback(self, step: int, reason: str) -> None:
        """Another file of events, which replaces the later steps."""
        assert self._writer is not None
        self._writer.close()
        self._open(step)

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Closes the file; what cannot be written now is in ``metrics.jsonl``."""
        if self._writer is None:
            return
        with suppress(OSError):
            self._writer.close()
        threading.excepthook = self._hook

    def _open(self, finished: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=finished + 1)

    def _on_thread_error(self, error: threading.ExceptHookArgs) -> None:
        if not isinstance(error.exc_value, OSError):
            self._hook(error)
