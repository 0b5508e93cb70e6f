"""Jobs as SLURM job arrays, by submitit.

At SLURM's signal (SIGUSR2, before the time limit or at preemption) a run saves a checkpoint, and submitit queues the
job again under the same id. Jobs go on when their controller is killed: a resumption leaves those that still run alone,
because each run is locked. An interrupted or cancelled controller ends them, after a checkpoint.

Whether a job exists is read from the queue: many clusters have no accounting, without which submitit never notices that
a job was cancelled. A job that ``scancel`` ended is not started again.
"""

import math
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from submitit import Job, SlurmExecutor
from submitit.core.utils import FailedJobError

from nfsd3d.errors import InputError
from nfsd3d.jobs.engines.base import EngineSettings
from nfsd3d.jobs.engines.submitit import FILES, Submission, outcome
from nfsd3d.jobs.engines.workers import QueueingEngine, Task
from nfsd3d.jobs.manifest import read
from nfsd3d.jobs.perform import Command
from nfsd3d.jobs.state import recorded_status

ARRAY = 1000
"""The most jobs of an array: as many as SLURM allows by default. Further ones follow when it has ended."""
_SBATCH = "sbatch: error: "
LOOK = 5.0
"""Seconds between two looks at the queue."""


class SlurmEngine(QueueingEngine["Job[str]"]):
    """See the module; of each array ``settings.workers`` jobs run at a time.

    Raises:
        InputError: SLURM is not installed here.
    """

    def __init__(self, settings: EngineSettings, command: Command) -> None:
        if shutil.which("sbatch") is None:
            raise InputError("engine submitit_slurm: there is no sbatch; start it on a login node of a SLURM cluster")
        super().__init__(_largest_array())
        self._settings, self._command = settings, command
        self._looked = 0.0
        self._missing: set[str] = set()
        """Jobs that the last look has not found."""

    def room(self) -> int:
        """See :class:`nfsd3d.jobs.engines.workers.QueueingEngine`."""
        return 0 if self._given else self._most

    def give(self, jobs: Sequence[tuple[Path, int]]) -> list["Job[str]"]:
        """See :class:`nfsd3d.jobs.engines.workers.QueueingEngine`."""
        folder, settings = jobs[0][0], self._settings
        chosen = {
            **{name: getattr(settings, name) for name in ("partition", "account", "qos", "constraint")},
            "gpus_per_node": int(settings.gpus or 0) or None,
            "mem": settings.mem_gb and f"{math.ceil(settings.mem_gb * 1024)}MB",
        }
        executor = SlurmExecutor(folder / FILES, max_num_timeout=settings.max_requeues)
        executor.update_parameters(
            job_name=folder.name,
            time=settings.timeout_min,
            signal_delay_s=settings.signal_delay_s,
            cpus_per_task=settings.threads or 1,
            array_parallelism=settings.workers,
            **{name: value for name, value in chosen.items() if value is not None},
        )
        threads = settings.threads or 1
        tasks = [
            Task(self._command, own, number, "submitit_slurm", threads, settings.processes) for own, number in jobs
        ]
        try:
            given: list[Job[str]] = executor.submit_array([Submission(task, None) for task in tasks])
        except FailedJobError as error:
            reason = " ".join(str(error).split())
            raise InputError(f"engine submitit_slurm: SLURM takes no job: {reason.removeprefix(_SBATCH)}") from error
        return given

    def finished(self, handles: Sequence["Job[str]"], timeout: float) -> Mapping["Job[str]", str]:
        """See :class:`nfsd3d.jobs.engines.workers.QueueingEngine`."""
        time.sleep(timeout)
        gone = self._gone(handles)
        return {job: self._outcome(job) for job in handles if job.job_id in gone or job.paths.result_pickle.exists()}

    def interrupt(self, jobs: Mapping["Job[str]", tuple[Path, int]]) -> None:
        """See :class:`nfsd3d.jobs.engines.workers.QueueingEngine`."""
        if jobs:
            _slurm("scancel", "--state=PENDING", *_arrays(jobs))
            _slurm("scancel", "--signal=TERM", *_arrays(jobs))

    def close(self, left: Sequence["Job[str]"]) -> None:
        """See :class:`nfsd3d.jobs.engines.workers.QueueingEngine`."""
        if left:
            _slurm("scancel", *_arrays(left))

    def _outcome(self, job: "Job[str]") -> str:
        """Why an ended job has not come to an end; "" for one that ``scancel`` has ended, or that has not begun."""
        folder, number = self._given[job]
        manifest = read(folder)
        if recorded_status(manifest, manifest.jobs[number]) == "interrupted":
            return ""
        return outcome(job) if job.paths.result_pickle.exists() or job.paths.stderr.exists() else ""

    def _gone(self, jobs: Sequence["Job[str]"]) -> set[str]:
        """The ids of the jobs that two looks at the queue have not found: a result may arrive after its job's end."""
        if time.monotonic() - self._looked < LOOK:
            return set()
        self._looked = time.monotonic()
        queue = _slurm("squeue", "--me", "--noheader", "--array", "--format=%i")
        if queue is None:
            return set()
        missing = {job.job_id for job in jobs} - set(queue.split())
        twice, self._missing = missing & self._missing, missing
        return twice


def _largest_array() -> int:
    """How many jobs an array may have on this cluster; at most :data:`ARRAY`."""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", _slurm("scontrol", "show", "config") or "")
    return ARRAY if found is None else max(1, min(int(found[1]), ARRAY))


def _arrays(jobs: "Mapping[Job[str], tuple[Path, int]] | Sequence[Job[str]]") -> set[str]:
    return {job.job_id.partition("_")[0] for job in jobs}


def _slurm(*command: str) -> str | None:
    """What a command of SLURM prints; None if it fails, as while the controller of the cluster is away."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None
