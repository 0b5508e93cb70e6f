"""Jobs in processes of this machine that submitit starts and limits in time.

Before the time limit, at SIGUSR2, a run saves a checkpoint, and submitit starts the job again. submitit writes its
files into ``.submitit`` in the set's folder. Jobs end with their controller, after a checkpoint, whatever ends it.

GPUs are shared out here: submitit 1.5 shows each job the machine's first ones, whatever its own process may use.
"""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import CalledProcessError

from submitit import Job, JobEnvironment, LocalExecutor
from submitit.core.utils import UncompletedJobError
from submitit.helpers import DelayedSubmission

from nfsd3d.jobs.cores import gpu_shares
from nfsd3d.jobs.engines.base import EngineSettings
from nfsd3d.jobs.engines.workers import Controller, QueueingEngine, Task, terminate
from nfsd3d.jobs.manifest import read
from nfsd3d.jobs.perform import Command

FILES = ".submitit"
POLL = 0.1
"""Seconds between two looks at a job's process."""


@dataclass(frozen=True)
class Submission:
    """A task as submitit calls it.

    ``controller`` is the process with which it ends, None if it goes on; ``gpus`` are the names of those it may use,
    None for those that its process sees.
    """

    task: Task
    controller: Controller | None
    gpus: Sequence[str] | None = None

    def __call__(self) -> str:
        """Runs the job; returns which signal ended it, or ""."""
        if self.controller is not None:
            self.controller.guard()
        if self.gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)  # before torch looks for them
        try:
            return self.task.run(JobEnvironment().job_id)
        except UncompletedJobError:  # it reached its time limit once too often; its state says that it is interrupted
            return ""
        except CalledProcessError as error:  # SLURM ends what it queues again, the command that asked for it as well
            if error.returncode == -signal.SIGTERM:
                raise SystemExit from error  # without a result, which would say that the job has ended
            raise

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues after a signal: the same job, which resumes from its checkpoint."""
        return DelayedSubmission(self)


class SubmititLocalEngine(QueueingEngine["Job[str]"]):
    """See the module; at most ``settings.workers`` processes at a time."""

    def __init__(self, settings: EngineSettings, command: Command) -> None:
        super().__init__(settings.workers)
        self._settings, self._command = settings, command
        self._free = gpu_shares(settings.workers, settings.gpus or 0)
        self._gpus: dict[Job[str], list[str] | None] = {}
        """Those of each job."""

    def give(self, jobs: Sequence[tuple[Path, int]]) -> list["Job[str]"]:
        """See :class:`nfsd3d.jobs.engines.workers.QueueingEngine`."""
        folder, settings = jobs[0][0], self._settings
        executor = LocalExecutor(folder / FILES, max_num_timeout=settings.max_requeues)
        # submitit kills a job a second after its supervisor got Ctrl-C: it reaches the controller alone.
        executor.update_parameters(timeout_min=settings.timeout_min, setup=["trap '' INT"])
        given = []
        for own, number in jobs:
            task = Task(self._command, own, number, "submitit_local", settings.threads or 1, settings.processes)
            gpus = self._free.pop()
            job = executor.submit(Submission(task, Controller(), gpus))
            self._gpus[job] = gpus
            given.append(job)
        return given

    def finished(self, handles: Sequence["Job[str]"], timeout: float) -> Mapping["Job[str]", str]:
        """See :class:`nfsd3d.jobs.engines.workers.QueueingEngine`."""
        deadline = time.monotonic() + timeout
        while not (done := [job for job in handles if job.done()]) and time.monotonic() < deadline:
            time.sleep(POLL)
        self._free += map(self._gpus.pop, done)
        return {job: outcome(job) for job in done}

    def interrupt(self, jobs: Mapping["Job[str]", tuple[Path, int]]) -> None:
        """See :class:`nfsd3d.jobs.engines.workers.QueueingEngine`."""
        for folder, number in jobs.values():
            terminate(folder / read(folder).jobs[number].directory)

    def close(self, left: Sequence["Job[str]"]) -> None:
        """See :class:`nfsd3d.jobs.engines.workers.QueueingEngine`."""
        for job in left:
            job.cancel()


def outcome(job: "Job[str]") -> str:
    """Why the job of an ended process has not come to an end, or ""."""
    if not job.paths.result_pickle.exists():
        return f"its process ended without a result; see {job.paths.stderr}"
    error = job.exception()
    return job.result() if error is None else f"{str(error).strip().splitlines()[-1]}; see {job.paths.stderr}"
