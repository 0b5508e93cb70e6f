"""What the engines that other libraries provide share: a job in a worker process, and the queue before the library."""

import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

from nfsd3d.jobs.engines.base import Ended, EngineName
from nfsd3d.jobs.perform import Command, perform
from nfsd3d.runs.lock import live_owner
from nfsd3d.runs.process import machine, start_time
from nfsd3d.train.interrupts import Interrupted, stop_requests

PATIENCE = 60.0
"""Seconds in which a run saves its checkpoint before its process is killed."""
PAUSE = 1.0
"""Seconds between two looks at whether the controller is alive."""


@dataclass(frozen=True)
class Controller:
    """The process whose end ends its workers; ``started`` tells it from a later one with the same number."""

    pid: int = field(default_factory=os.getpid)
    started: str | None = field(default_factory=lambda: start_time(os.getpid()))

    def guard(self) -> None:
        """Ends this process, a worker, soon after the controller or the worker's parent has ended.

        A run saves its checkpoint. Call it once in a process.
        """
        threading.Thread(target=self._watch, args=(os.getppid(),), daemon=True, name="watch of the controller").start()

    def _watch(self, parent: int) -> None:
        while start_time(self.pid) == self.started and os.getppid() == parent:
            time.sleep(PAUSE)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:  # again and again: between two jobs a library may ignore it
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(PAUSE)
        os._exit(128 + signal.SIGTERM)


@dataclass(frozen=True)
class Task:
    """A job as a worker process runs it; its command is pickled by reference.

    ``processes`` share its run.
    """

    command: Command
    folder: Path
    number: int
    engine: EngineName
    threads: int | None
    processes: int = 1

    def run(self, id: str) -> str:
        """Runs the job, which the engine calls ``id``; returns which signal ended it, or what `perform` returns."""
        try:
            with stop_requests():  # from here on, not only while training; the library's own handler is called after it
                return perform(
                    self.command,
                    self.folder,
                    self.number,
                    engine=self.engine,
                    id=id,
                    threads=self.threads,
                    processes=self.processes,
                )
        except Interrupted as interruption:
            return str(interruption)


def terminate(run_dir: Path) -> None:
    """Asks the process of this machine that has the job in ``run_dir`` to save a checkpoint and to end."""
    owner = live_owner(run_dir)
    if owner is not None and owner.machine == machine() and owner.pid != os.getpid():
        with suppress(ProcessLookupError):
            os.kill(owner.pid, signal.SIGTERM)


Handle = TypeVar("Handle", bound=Hashable)
"""A library's object for a job that it was given."""


class QueueingEngine(ABC, Generic[Handle]):
    """Gives a library at most ``most`` jobs at a time, so that jobs that have not begun can be withdrawn."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: deque[tuple[Path, int]] = deque()
        self._given: dict[Handle, tuple[Path, int]] = {}

    def room(self) -> int:
        """How many more jobs the library may be given."""
        return self._most - len(self._given)

    @abstractmethod
    def give(self, jobs: Sequence[tuple[Path, int]]) -> list[Handle]:
        """Gives the library jobs: the set's folder and the job's number; returns a handle for each."""

    @abstractmethod
    def finished(self, handles: Sequence[Handle], timeout: float) -> Mapping[Handle, str]:
        """Those that have ended, each with why its process died (""); waits up to ``timeout`` s for the first one."""

    @abstractmethod
    def interrupt(self, jobs: Mapping[Handle, tuple[Path, int]]) -> None:
        """Has jobs save a checkpoint and end; those that have not begun do not begin. May be called repeatedly."""

    @abstractmethod
    def close(self, left: Sequence[Handle]) -> None:
        """Ends the workers at once; ``left`` are jobs that have not ended in time."""

    def submit(self, folder: Path, numbers: Sequence[int]) -> None:
        """See :class:`nfsd3d.jobs.engines.base.Engine`."""
        self._waiting.extend((folder.absolute(), number) for number in numbers)

    def ended(self, timeout: float) -> list[Ended]:
        """See :class:`nfsd3d.jobs.engines.base.Engine`."""
        free = min(self.room(), len(self._waiting))
        if free > 0:
            jobs = [self._waiting.popleft() for _ in range(free)]
            self._given.update(zip(self.give(jobs), jobs, strict=True))
        ended = self.finished(list(self._given), timeout)
        return [Ended(self._given.pop(handle)[1], died) for handle, died in ended.items()]

    def stop(self) -> None:
        """See :class:`nfsd3d.jobs.engines.base.Engine`."""
        self._waiting.clear()
        self.interrupt(self._given)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        deadline = time.monotonic() + PATIENCE
        while self._given and time.monotonic() < deadline:
            self.stop()  # repeatedly: a job that was about to begin could not hear it
            self.ended(PAUSE)
        self.close(list(self._given))
