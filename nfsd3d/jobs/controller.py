"""The controller of a set of jobs: gives them to an engine, tells how they end, and starts again what died."""

import importlib
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

from nfsd3d.errors import InputError
from nfsd3d.jobs.cores import gpu_shares, shares, usable_cores
from nfsd3d.jobs.engines.base import Ended, Engine, EngineSettings, engine_settings
from nfsd3d.jobs.manifest import Job, Manifest, job_count, resume_command
from nfsd3d.jobs.perform import Command, conclude
from nfsd3d.jobs.state import CANCELLED, FINAL, LOG, JobState, Status, state_of, states
from nfsd3d.runs.files import json_object, read_bytes, write_json, write_text
from nfsd3d.runs.lock import owned
from nfsd3d.train.interrupts import Interrupted, stop_requests

ENGINES = {
    "local": ("nfsd3d.jobs.engines.local:LocalEngine", None),
    "joblib": ("nfsd3d.jobs.engines.joblib:JoblibEngine", "joblib"),
    "submitit_local": ("nfsd3d.jobs.engines.submitit:SubmititLocalEngine", "submitit"),
    "submitit_slurm": ("nfsd3d.jobs.engines.slurm:SlurmEngine", "submitit"),
    "ray": ("nfsd3d.jobs.engines.ray:RayEngine", "ray"),
}
"""The class of each engine, and the package that it needs."""

ENGINE = "engine.json"
"""The settings of the engine that a set's jobs were last given to."""

SIGNAL_EARLY = 60
"""Seconds by which SLURM may send a signal before its time (its manual of sbatch, --signal)."""

POLL = 0.5
"""Seconds between two looks at signals and at the order to cancel."""


def run(
    manifest: Manifest,
    settings: EngineSettings,
    command: Command,
    on_end: Callable[[Job, JobState], None] | None = None,
    on_look: Callable[[], None] | None = None,
) -> Counter[Status]:
    """Runs the jobs of a written manifest that are not done, each by ``command``; returns how many are in each state.

    ``on_end`` is called with each job that has ended, ``on_look`` at least every `POLL` seconds; both may `cancel` the
    set. A job that diverged is not repeated: it would again.

    Raises:
        Interrupted: a signal ended the controller; its workers have saved checkpoints.
        InputError: the engine's package is not installed, or another controller has this set.
    """
    engine = load_engine(settings, command)
    with owned(manifest.folder), stop_requests() as stop:
        waiting = {job.number for job, state in states(manifest) if state.status not in FINAL}
        given: set[int] = set()
        died: Counter[int] = Counter()
        total, done = len(waiting), 0
        with engine:
            (manifest.folder / CANCELLED).unlink(missing_ok=True)
            write_json(manifest.folder / ENGINE, asdict(settings))
            while waiting:
                if not given:
                    given = {number for number in waiting if number < manifest.leading} or set(waiting)
                    engine.submit(manifest.folder, sorted(given))
                for end in engine.ended(POLL):
                    job = manifest.jobs[end.number]
                    if end.died and died[end.number] < settings.retries:
                        died[end.number] += 1
                        print(f"{job}: {end.died}; started again", file=sys.stderr)
                        engine.submit(manifest.folder, [end.number])
                        continue
                    waiting.discard(end.number)
                    given.discard(end.number)
                    done += 1
                    state = _final_state(manifest, job, end)
                    print(f"[{done}/{total}] {line_of(manifest, job, state)}", file=sys.stderr, flush=True)
                    if on_end is not None:
                        on_end(job, state)
                if on_look is not None:
                    on_look()
                if stop.signum is not None or (manifest.folder / CANCELLED).exists():
                    engine.stop()
                    break
        if stop.signum is not None:
            resume = f"go on with: {resume_command(manifest.folder)}"
            how = resume if manifest.kind == "sweep" else "give the same command again to resume"
            raise Interrupted(stop.signum, f"interrupted, {len(waiting)} of {job_count(total)} left; {how}")
    return Counter(state.status for _, state in states(manifest))


def cancel(folder: Path) -> None:
    """Orders the controller and the workers of the set in ``folder`` to end; a later resumption takes it back."""
    write_text(folder / CANCELLED, "")


def last_engine(folder: Path) -> EngineSettings:
    """The engine that the jobs in ``folder`` were last given to; the default one before the first time.

    If it cannot be read, it is the default one, too, and a line on stderr says so.
    """
    if not (folder / ENGINE).exists():
        return EngineSettings()
    try:
        return engine_settings(json_object(read_bytes(folder / ENGINE)), "")
    except (OSError, ValueError) as error:  # InputError is a ValueError
        default = EngineSettings()
        print(f"{folder / ENGINE}: cannot be read ({error}); engine {default.engine}", file=sys.stderr)
        return default


def check_engine(settings: EngineSettings) -> None:
    """Raises `InputError` unless the engine's package is installed and its settings fit this machine and each other."""
    if settings.engine == "submitit_slurm" and settings.signal_delay_s + SIGNAL_EARLY >= 60 * settings.timeout_min:
        lower = " or lower signal_delay_s" if 60 * settings.timeout_min > SIGNAL_EARLY + 1 else ""
        raise InputError(
            f"timeout_min={settings.timeout_min}: must be longer than signal_delay_s={settings.signal_delay_s} and the "
            f"{SIGNAL_EARLY} s by which SLURM may send its signal early, which could end a job as it begins; raise it"
            + lower
        )
    _, package = ENGINES[settings.engine]
    if package is not None and find_spec(package) is None:
        raise InputError(
            f"engine {settings.engine}: {package} is not installed; install it with: pip install 'nfsd3d[sweep]'"
        )
    if settings.engine in ("local", "joblib"):
        shares(usable_cores(), settings.workers)
        gpu_shares(settings.workers, settings.gpus)
    elif settings.engine == "submitit_local":
        gpu_shares(settings.workers, settings.gpus or 0)
    if settings.engine != "ray" and (settings.gpus or 0) % 1:
        raise InputError(f"gpus={settings.gpus:g}: only Ray divides a GPU among jobs; give a whole number")


def load_engine(settings: EngineSettings, command: Command) -> Engine:
    """The engine that the settings name.

    Raises:
        InputError: its package is not installed, or its settings do not fit this machine.
    """
    check_engine(settings)
    module, name = ENGINES[settings.engine][0].split(":")
    engine: Engine = getattr(importlib.import_module(module), name)(settings, command)
    return engine


def line_of(manifest: Manifest, job: Job, state: JobState) -> str:
    """One line on a job: its directory, state, time and reason, and the log of one that has failed."""
    took = f" in {state.seconds:.0f} s" if state.status == "done" and state.seconds is not None else ""
    log = f"; see {manifest.run_dir(job) / LOG}" if state.status in ("failed", "diverged") else ""
    return f"{job}: {state.status}{took}" + (f": {state.reason}" if state.reason else "") + log


def _final_state(manifest: Manifest, job: Job, end: Ended) -> JobState:
    """The state of a job that has ended; why its process died is kept in its directory, if there is one."""
    if end.died:
        with suppress(OSError):
            conclude(manifest, job, {"status": "interrupted", "reason": end.died})
    state = state_of(manifest, job)
    return state if state.reason or not end.died else replace(state, reason=end.died)
