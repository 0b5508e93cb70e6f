"""Jobs in worker processes of this machine, each with its share of the cores and GPUs.

A worker keeps its imports from job to job. It ends with its controller, whatever ends that: the pipe through which it
is given jobs closes, and its run saves a checkpoint.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

from nfsd3d.jobs.cores import gpu_shares, shares, threads, usable_cores
from nfsd3d.jobs.engines.base import Ended, EngineSettings
from nfsd3d.jobs.engines.workers import PATIENCE
from nfsd3d.jobs.perform import Command


class LocalEngine:
    """See the module; ``settings.workers`` processes, which start with their first job.

    Raises:
        InputError: more workers than cores, or GPUs.
    """

    def __init__(self, settings: EngineSettings, command: Command) -> None:
        cores = shares(usable_cores(), settings.workers)
        self._workers = [_Worker(self, own, settings, command) for own in cores]
        for worker, gpus in zip(self._workers, gpu_shares(settings.workers, settings.gpus), strict=True):
            worker.gpus = gpus
        self.waiting: SimpleQueue[tuple[Path, int] | None] = SimpleQueue()
        self.ends: SimpleQueue[Ended] = SimpleQueue()
        self.stopping = False

    def submit(self, folder: Path, numbers: Sequence[int]) -> None:
        """See :class:`nfsd3d.jobs.engines.base.Engine`."""
        for number in numbers:
            self.waiting.put((folder, number))

    def ended(self, timeout: float) -> list[Ended]:
        """See :class:`nfsd3d.jobs.engines.base.Engine`."""
        found = []
        try:
            found.append(self.ends.get(timeout=timeout))
            while True:
                found.append(self.ends.get_nowait())
        except Empty:
            return found

    def stop(self) -> None:
        """See :class:`nfsd3d.jobs.engines.base.Engine`."""
        self.stopping = True
        for worker in self._workers:
            worker.terminate()

    def __enter__(self) -> Self:
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stopping = self.stopping or error is not None
        for _ in self._workers:
            self.waiting.put(None)
        if self.stopping:
            self.stop()
        deadline = time.monotonic() + PATIENCE
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()) if self.stopping else None)
            worker.kill()
            worker.join()


class _Worker(threading.Thread):
    """A process, and the thread that gives it jobs and waits for their end."""

    def __init__(self, engine: LocalEngine, cores: Sequence[int], settings: EngineSettings, command: Command) -> None:
        super().__init__(daemon=True, name=f"worker on cores {cores}")
        self._engine, self._cores = engine, list(cores)
        self._command = f"{command.__module__}:{command.__qualname__}"
        self._threads, self._processes = settings.threads or len(cores), settings.processes
        self.gpus: list[str] | None = None
        self._process: subprocess.Popen[str] | None = None

    def run(self) -> None:
        """Gives jobs to the process until there are none."""
        while (item := self._engine.waiting.get()) is not None and not self._engine.stopping:
            folder, number = item
            try:
                died = self._give(folder, number)
            except (OSError, ValueError) as error:  # no process can be started, or it died before it was given the job
                died = f"its process could not be given the job ({error})"
            self._engine.ends.put(Ended(number, died))
        if self._process is not None:
            try:
                self._process.communicate(timeout=PATIENCE)
            except (OSError, ValueError, subprocess.TimeoutExpired):
                self._process.kill()

    def _give(self, folder: Path, number: int) -> str:
        """Has the process run a job; returns why it died or could not run the job, or ""."""
        process = self._process if self._process is not None and self._process.poll() is None else self._start()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps([str(folder.absolute()), number]) + "\n")
        process.stdin.flush()
        if answer := process.stdout.readline():
            return str(json.loads(answer))
        process.communicate()  # closes the pipes
        return _cause(process.returncode)

    def terminate(self) -> None:
        """Asks the process to save its run's checkpoint and to end."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """Ends the process at once, if it has not ended."""
        if self._process is not None:
            self._process.kill()

    def _start(self) -> "subprocess.Popen[str]":
        environment = {**os.environ, **threads(self._threads)}
        if self.gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
        arguments = [self._command, json.dumps(self._cores), str(self._threads), str(self._processes)]
        # A session of its own: Ctrl-C reaches the controller alone, which then ends its workers in order.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nfsd3d.jobs.worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        if self._engine.stopping:  # meanwhile: `terminate` has not found this process
            self._process.terminate()
        return self._process


def _cause(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit code {code}; see its log"
    name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
    return f"its process was ended by {name}" + ("; is there enough memory?" if name == "SIGKILL" else "")
