"""Jobs in the worker processes of joblib's executor (loky).

Each worker has an executor of its own: loky kills all processes of an executor when one of them dies. Workers keep
their imports from job to job, until loky replaces one between two jobs because its memory has grown. They end with
their controller, after a checkpoint, whatever ends it.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from joblib.externals.loky import ProcessPoolExecutor

from nfsd3d.jobs.cores import gpu_shares, keep_to, shares, threads, usable_cores
from nfsd3d.jobs.engines.base import EngineSettings
from nfsd3d.jobs.engines.workers import Controller, QueueingEngine, Task, terminate
from nfsd3d.jobs.manifest import read
from nfsd3d.jobs.perform import Command

REPLACED = "A worker stopped while some jobs were given to the executor"
"""loky's warning when it replaces a worker, which loses no job."""


class JoblibEngine(QueueingEngine["Future[str]"]):
    """See the module; ``settings.workers`` processes, which start with their first job.

    Raises:
        InputError: more workers than cores.
    """

    def __init__(self, settings: EngineSettings, command: Command) -> None:
        super().__init__(settings.workers)
        warnings.filterwarnings("ignore", message=REPLACED)
        self._settings, self._command = settings, command
        cores = shares(usable_cores(), settings.workers)
        self._workers = list(zip(cores, gpu_shares(settings.workers, settings.gpus), strict=True))
        """The cores and the GPUs of each worker."""
        self._executors: dict[int, ProcessPoolExecutor] = {}
        self._busy: dict[Future[str], int] = {}
        """The worker of each job."""

    def give(self, jobs: Sequence[tuple[Path, int]]) -> list["Future[str]"]:
        """See :class:`nfsd3d.jobs.engines.workers.QueueingEngine`."""
        futures = []
        for folder, number in jobs:
            worker = min(set(range(len(self._workers))) - set(self._busy.values()))
            executor = self._executors.get(worker) or self._start(worker)
            threads_ = self._settings.threads or len(self._workers[worker][0])
            future = executor.submit(
                _run, Task(self._command, folder, number, "joblib", threads_, self._settings.processes)
            )
            self._busy[future] = worker
            futures.append(future)
        return futures

    def finished(self, handles: Sequence["Future[str]"], timeout: float) -> Mapping["Future[str]", str]:
        """See :class:`nfsd3d.jobs.engines.workers.QueueingEngine`."""
        done, _ = wait(handles, timeout, FIRST_COMPLETED)
        return {future: self._outcome(future) for future in done}

    def interrupt(self, jobs: Mapping["Future[str]", tuple[Path, int]]) -> None:
        """See :class:`nfsd3d.jobs.engines.workers.QueueingEngine`."""
        for folder, number in jobs.values():
            terminate(folder / read(folder).jobs[number].directory)

    def close(self, left: Sequence["Future[str]"]) -> None:
        """See :class:`nfsd3d.jobs.engines.workers.QueueingEngine`."""
        for executor in self._executors.values():
            executor.shutdown(kill_workers=bool(left))

    def _start(self, worker: int) -> ProcessPoolExecutor:
        cores, gpus = self._workers[worker]
        environment = threads(self._settings.threads or len(cores))
        if gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        executor = ProcessPoolExecutor(
            max_workers=1, initializer=_begin, initargs=(Controller(), cores), env=environment
        )
        self._executors[worker] = executor
        return executor

    def _outcome(self, future: "Future[str]") -> str:
        """Why the job of a finished future has not come to an end, or ""; a broken executor is given up."""
        worker = self._busy.pop(future)
        try:
            return future.result()
        except BrokenProcessPool as error:
            self._executors.pop(worker).shutdown()
            return f"its process died: {str(error).strip().splitlines()[-1].strip()}"


def _begin(controller: Controller, cores: Sequence[int]) -> None:
    """Prepares a worker process."""
    if hasattr(os, "setsid"):  # Ctrl-C reaches the controller alone, which then ends its workers in order
        os.setsid()
    keep_to(cores)
    controller.guard()


def _run(task: Task) -> str:
    return task.run(str(os.getpid()))
