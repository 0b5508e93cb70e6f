"""The state of a job, from its own directory: its summary, its lock, its metrics and the last process that had it."""

import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from nfsd3d.config.yaml_files import read_yaml
from nfsd3d.errors import InputError
from nfsd3d.jobs.manifest import Job, Manifest
from nfsd3d.runs.files import read_bytes, write_json
from nfsd3d.runs.lock import live_owner
from nfsd3d.runs.resumable import can_be_resumed

Status: TypeAlias = Literal["pending", "running", "done", "failed", "diverged", "interrupted", "cancelled"]
STATUSES: tuple[Status, ...] = get_args(Status)
FINAL: frozenset[Status] = frozenset({"done", "diverged"})
"""The states of jobs that running them again cannot change."""

ATTEMPT, LOG, SUMMARY, CANCELLED = "job.json", "job.log", "summary.json", "cancelled"
RECORD = "record"
"""The key of a summary that holds a comparison's record: its run has been scored."""
_TAIL = 8192
"""Bytes at the end of a metrics file in which its last complete line lies."""


@dataclass(frozen=True)
class Attempt:
    """The last process that was given a job: its engine, the engine's name for it, host, number and start."""

    engine: str
    id: str
    host: str
    pid: int
    started: str
    attempt: int


@dataclass(frozen=True)
class JobState:
    """The state of a job; ``steps`` are finished ones of ``planned``, None before the first or without a run."""

    status: Status
    reason: str = ""
    steps: int | None = None
    planned: int | None = None
    seconds: float | None = None
    steps_per_second: float | None = None
    attempt: Attempt | None = None

    @property
    def seconds_left(self) -> float | None:
        """The estimated time until training ends, None unless it runs."""
        if self.status != "running" or not self.steps_per_second or self.steps is None or self.planned is None:
            return None
        return (self.planned - self.steps) / self.steps_per_second


def states(manifest: Manifest) -> Iterator[tuple[Job, JobState]]:
    """Every job with its state."""
    cancelled = (manifest.folder / CANCELLED).exists()
    there: dict[Path, set[str]] = {}
    for job in manifest.jobs:
        run_dir = manifest.run_dir(job)
        if run_dir.parent not in there:  # one listing tells which of thousands of jobs have begun
            there[run_dir.parent] = _names(run_dir.parent)
        begun = run_dir.name in there[run_dir.parent]
        yield job, _state(manifest, job, cancelled) if begun else JobState("cancelled" if cancelled else "pending")


def state_of(manifest: Manifest, job: Job) -> JobState:
    """The state of one job."""
    cancelled, run_dir = (manifest.folder / CANCELLED).exists(), manifest.run_dir(job)
    return _state(manifest, job, cancelled) if run_dir.is_dir() else JobState("cancelled" if cancelled else "pending")


def _state(manifest: Manifest, job: Job, cancelled: bool) -> JobState:
    run_dir = manifest.run_dir(job)
    attempt = read_attempt(run_dir)
    if live_owner(run_dir) is not None:
        last = _last_metrics(run_dir / "metrics.jsonl")
        return JobState(
            "running",
            steps=_whole(last.get("step")),
            planned=_planned(run_dir),
            seconds=_number(last.get("seconds")),
            steps_per_second=_number(last.get("steps_per_second")),
            attempt=attempt,
        )
    summary = object_in(run_dir / SUMMARY)
    status = _status_in(summary, manifest)
    if status is None:
        resumable = can_be_resumed(run_dir)
        status = "cancelled" if cancelled else "interrupted" if attempt is not None or resumable else "pending"
        return JobState(status, "its process was killed" if status == "interrupted" else "", attempt=attempt)
    if status == "interrupted" and cancelled:
        status = "cancelled"
    reason = summary.get("reason")
    return JobState(
        status,
        str(reason or ""),
        _whole(summary.get("steps")),
        _whole(summary.get("steps_planned")),
        _number(summary.get("seconds")),
        attempt=attempt,
    )


def recorded_status(manifest: Manifest, job: Job) -> Status | None:
    """The status in a job's summary, whoever has the job now; None without one, and before a run is scored."""
    return _status_in(object_in(manifest.run_dir(job) / SUMMARY), manifest)


def _status_in(summary: Mapping[str, object], manifest: Manifest) -> Status | None:
    status = next((known for known in STATUSES if known == summary.get("status")), None)
    unscored = manifest.kind == "compare" and status in FINAL and RECORD not in summary
    return None if unscored else status


def read_attempt(run_dir: Path) -> Attempt | None:
    """The last attempt at a job, None before the first."""
    try:
        return Attempt(**object_in(run_dir / ATTEMPT))  # type: ignore[arg-type]
    except TypeError:
        return None


def begin_attempt(run_dir: Path, engine: str, id: str) -> Attempt:
    """Records that this process has been given the job in ``run_dir``."""
    before = read_attempt(run_dir)
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    number = 1 if before is None else before.attempt + 1
    attempt = Attempt(engine, id, socket.gethostname(), os.getpid(), started, number)
    write_json(run_dir / ATTEMPT, asdict(attempt))
    return attempt


def _names(folder: Path) -> set[str]:
    try:
        return {entry.name for entry in os.scandir(folder)}
    except OSError:
        return set()


def object_in(path: Path) -> dict[str, object]:
    """The JSON object in a file; empty without one."""
    try:
        found = json.loads(read_bytes(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _last_metrics(path: Path) -> dict[str, object]:
    """The last complete line of a metrics file; empty without one."""
    try:
        lines = read_bytes(path)[-_TAIL:].split(b"\n")[:-1]
        last = json.loads(lines[-1]) if lines else {}
    except (OSError, ValueError):
        return {}
    return last if isinstance(last, dict) else {}


def _planned(run_dir: Path) -> int | None:
    """The steps that a run will have, from its configuration."""
    path = run_dir / "config.yaml"
    try:
        train = read_yaml(path).get("train") if path.is_file() else None
    except (InputError, OSError):
        return None
    return _whole(train.get("steps")) if isinstance(train, dict) else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
