"""One job in this process: its output goes to its log, and its outcome to its directory."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeAlias

from nfsd3d.errors import InputError, print_error
from nfsd3d.jobs.manifest import Job, Manifest, read
from nfsd3d.jobs.state import (
    CANCELLED,
    FINAL,
    LOG,
    SUMMARY,
    JobState,
    begin_attempt,
    recorded_status,
    state_of,
)
from nfsd3d.runs import lock, remains
from nfsd3d.runs.files import write_json
from nfsd3d.train.interrupts import Interrupted, stop_requests

Command: TypeAlias = Callable[[list[str]], object]
"""Runs a command line of this program and raises its errors: `nfsd3d.cli.main.run_command`, which knows all of them."""


def perform(
    command: Command, folder: Path, number: int, *, engine: str, id: str = "", threads: int | None = None
) -> JobState:
    """Runs a job of the manifest in ``folder`` by ``command`` unless it is done; returns its state.

    A run that was interrupted is resumed from its checkpoint. A job that another process has is left to it. ``engine``
    and ``id`` are recorded for people; ``threads`` is the number of torch's and numba's threads (None: as it is).

    Raises:
        Interrupted: a signal ended it, after a checkpoint.
        InputError: no manifest.
        OSError: the job's directory cannot be written to.
    """
    manifest = read(folder)
    job, run_dir = manifest.jobs[number], folder / manifest.jobs[number].directory
    if (folder / CANCELLED).exists() or state_of(manifest, job).status in FINAL:
        return state_of(manifest, job)
    run_dir.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(lock.owned(run_dir))
        except InputError:
            return state_of(manifest, job)
        if recorded_status(manifest, job) in FINAL:  # another process was faster
            return state_of(manifest, job)
        begin_attempt(run_dir, engine, id)
        stack.enter_context(_output_to(run_dir / LOG))
        if threads is not None:
            _limit_threads(threads)
        _perform(command, manifest, job, run_dir)
    return state_of(manifest, job)


def _perform(command: Command, manifest: Manifest, job: Job, run_dir: Path) -> None:
    """Runs the job's command line; an error ends in its summary instead of this process."""
    arguments = _command_line(manifest, job, run_dir)
    print(f"$ nfsd3d {' '.join(map(str, arguments))}", flush=True)
    os.chdir(manifest.cwd)
    (run_dir / SUMMARY).unlink(missing_ok=True)
    try:
        with stop_requests() as stop, stop.at_once():
            command(arguments)
    except Interrupted as interruption:
        print(interruption, file=sys.stderr)
        name = signal.Signals(interruption.signum).name
        _conclude(manifest, job, {"status": "interrupted", "reason": str(interruption), "signal": name})
        raise
    except Exception as error:  # whatever this job's error is, the others run
        print_error(error)
        reason = " ".join(str(error).split()) or type(error).__name__
        _conclude(manifest, job, {"status": "failed", "reason": reason})


def _command_line(manifest: Manifest, job: Job, run_dir: Path) -> list[str]:
    """The arguments that start the job or resume its run; removes what an unstarted run has left."""
    arguments = [*manifest.arguments, *job.arguments]
    if manifest.kind == "compare":
        return [*arguments, str(run_dir.absolute())]
    if any((run_dir / "checkpoints").glob("step-*.json")):
        return ["--resume", str(run_dir)]
    remains.remove(run_dir)
    return [*arguments, f"run_dir={run_dir.absolute()}"]


def _conclude(manifest: Manifest, job: Job, outcome: dict[str, str]) -> None:
    """Writes the outcome of a job whose run has not written one."""
    run_dir = manifest.run_dir(job)
    if run_dir.is_dir() and recorded_status(manifest, job) is None:
        write_json(run_dir / SUMMARY, outcome)


def _limit_threads(count: int) -> None:
    """Limits torch to ``count`` threads; numba's kernels take as many as torch (`generators.nerf.launch_numba`)."""
    import torch

    torch.set_num_threads(count)


@contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Within the block, what this process and its libraries print is appended to a file."""
    saved = [os.dup(descriptor) for descriptor in (1, 2)]
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    _flush()
    try:
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        yield
    finally:
        _flush()
        for descriptor, former in zip((1, 2), saved, strict=True):
            os.dup2(former, descriptor)
            os.close(former)
        os.close(log)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
