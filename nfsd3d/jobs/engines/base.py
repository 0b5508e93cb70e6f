"""The protocol of an engine, and the settings of all engines."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Literal, Protocol, Self

from pydantic import (
    ConfigDict,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)

from nfsd3d.config.errors import describe_errors
from nfsd3d.config.hardware import Choice
from nfsd3d.config.schema import Config
from nfsd3d.errors import InputError
from nfsd3d.train.torchrun import check_views

EngineName = Literal["local", "joblib", "submitit_local", "submitit_slurm", "ray"]


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Where and how the jobs of a sweep, suite or comparison run."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    engine: EngineName = "local"
    """local and joblib: processes of this machine; submitit_local, submitit_slurm: submitit; ray: a Ray cluster."""
    workers: PositiveInt = 1
    """Jobs at a time; submitit_slurm: the most at a time of the job array."""
    threads: PositiveInt | None = None
    """Threads of each job; null: an equal share of the cores (local, joblib), or the cores that it was given."""
    gpus: NonNegativeFloat | None = None
    """GPUs of each job; of several, each has a process that shares the run; for Ray a fraction, too. null: none, or for
    local and joblib an equal share of the visible ones, of which the job's one process takes the first."""
    retries: NonNegativeInt = 1
    """How often a job whose process died is started again, from its checkpoint."""
    timeout_min: PositiveInt = 1440
    """submitit: minutes after which a job saves a checkpoint and is queued again."""
    partition: str | None = None
    """submitit_slurm: the partition."""
    account: str | None = None
    """submitit_slurm: the account."""
    qos: str | None = None
    """submitit_slurm: the quality of service."""
    constraint: str | None = None
    """submitit_slurm: features that a node must have."""
    mem_gb: PositiveFloat | None = None
    """submitit_slurm: memory of a job in GB; null: the cluster's default."""
    signal_delay_s: PositiveInt = 120
    """submitit_slurm: seconds before the time limit at which a job is told to save; longer than a checkpoint takes."""
    max_requeues: NonNegativeInt = 10
    """submitit: how often a job that reached its time limit, or was preempted, is queued again."""
    address: str | None = None
    """ray: address of the cluster, such as auto or 10.0.0.1:6379; null: a cluster of this machine for this sweep."""

    @property
    def on_this_machines_gpus(self) -> bool:
        """Whether jobs share the GPUs that this process sees, and need not ask for any."""
        return self.engine in ("local", "joblib")

    @property
    def processes(self) -> int:
        """The processes that share a job's run."""
        return max(1, int(self.gpus or 0))

    @property
    def machine(self) -> Choice | None:
        """What ``machine=auto`` means for jobs that the engine gives GPUs, or none; None: what it means here."""
        given = Choice("cuda" if self.gpus else "cpu", f"{self.engine} with gpus={self.gpus or 0:g}")
        return None if self.on_this_machines_gpus else given

    @property
    def elsewhere(self) -> bool:
        """Whether jobs run on other machines, which may have GPUs where this one has none."""
        return self.engine == "submitit_slurm" or self.address is not None


def engine_settings(values: Mapping[str, object], group: str) -> EngineSettings:
    """The settings that plain ``values`` describe; messages begin with ``group``, such as ``hydra.launcher.``.

    Raises:
        InputError: on one line, each wrong setting with its value and what it must be.
    """
    try:
        return TypeAdapter(EngineSettings).validate_json(json.dumps(dict(values)))
    except ValidationError as error:
        known = [field.name for field in fields(EngineSettings)]
        raise InputError(f"{group}{describe_errors(error, known)}") from error


def check_run(config: Config, settings: EngineSettings) -> None:
    """Raises `InputError` if the engine's jobs cannot be runs with this configuration."""
    if config.machine.device.startswith("cuda") and not (settings.on_this_machines_gpus or settings.gpus):
        raise InputError(
            f"gpus={settings.gpus or 0:g}: {settings.engine} would give no GPU to jobs with machine=cuda; "
            "give each one (hydra.launcher.gpus=1, or --gpus 1), or set machine=cpu"
        )
    check_views(config.train.batch_size, settings.processes)


@dataclass(frozen=True)
class Ended:
    """A job that an engine does not run any more: its ``number``, and why, if its process died ("")."""

    number: int
    died: str = ""


class Engine(Protocol):
    """Runs :func:`nfsd3d.jobs.perform.perform` for jobs; a context manager that ends its workers in the end."""

    def submit(self, folder: Path, numbers: Sequence[int]) -> None:
        """Queues jobs of the manifest in ``folder``."""
        ...

    def ended(self, timeout: float) -> list[Ended]:
        """The jobs that have ended since the last call; waits up to ``timeout`` seconds for the first one."""
        ...

    def stop(self) -> None:
        """Starts no further job, and ends those that run, after a checkpoint."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
