"""One job in this process: its output goes to its log, and its outcome to its directory."""

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

from nfsd3d.errors import InputError, print_error
from nfsd3d.jobs import cores
from nfsd3d.jobs.manifest import Job, Manifest, read
from nfsd3d.jobs.state import CANCELLED, FINAL, LOG, SUMMARY, begin_attempt, object_in, read_attempt, recorded_status
from nfsd3d.jobs.torchrun import run_module
from nfsd3d.runs import lock, remains
from nfsd3d.runs.files import describe, write_json
from nfsd3d.runs.resumable import can_be_resumed
from nfsd3d.train.interrupts import Interrupted, StopRequest, stop_requests

Command: TypeAlias = Callable[[list[str]], object]
"""Runs a command line of this program and raises its errors: `nfsd3d.cli.main.run_command`, which knows all of them."""

RESUME = "--resume"
ORPHANED = 60.0
"""Seconds in which a worker whose controller was killed has ended."""


def perform(
    command: Command,
    folder: Path,
    number: int,
    *,
    engine: str,
    id: str = "",
    threads: int | None = None,
    processes: int = 1,
) -> str:
    """Runs a job of the manifest in ``folder`` by ``command`` unless it is done.

    A run that was interrupted is resumed from its checkpoint. A job that another process keeps for longer than
    :data:`ORPHANED` seconds is left to it. ``engine`` and ``id`` are recorded for people; ``threads`` is the number of
    torch's and numba's threads (None: as it is). Several ``processes`` share the run and the threads.

    Returns why the job's process died, or its outcome could not be written into its directory, such as a full disk;
    else "".

    Raises:
        Interrupted: a signal ended it, after a checkpoint.
    """
    try:
        manifest = read(folder)
        job = manifest.jobs[number]
        run_dir = manifest.run_dir(job)
        if (folder / CANCELLED).exists():
            return ""
        run_dir.mkdir(parents=True, exist_ok=True)
        if not _free(run_dir):
            return ""
        if processes > 1:
            each = None if threads is None else max(1, threads // processes)
            with stop_requests() as stop:
                died = _perform_together(command, manifest, job, [engine, id], processes, each, stop)
                stop.check()
            return died
        with ExitStack() as stack:
            stack.enter_context(lock.owned(run_dir))
            if recorded_status(manifest, job) in FINAL:  # another process was faster, or was killed after it was done
                return ""
            begin_attempt(run_dir, engine, id)
            stack.enter_context(_output_to(run_dir / LOG))
            _perform(command, manifest, job, run_dir, threads)
        return "" if recorded_status(manifest, job) else f"it ended without an outcome in {run_dir}"
    except OSError as error:
        return describe(error)
    except InputError as error:
        return str(error)


def _perform_together(
    command: Command,
    manifest: Manifest,
    job: Job,
    names: Sequence[str],
    processes: int,
    each: int | None,
    stop: StopRequest,
) -> str:
    """Has ``processes`` perform the job, with ``each`` threads; returns why one of them died, or ""."""
    run_dir, location = manifest.run_dir(job), f"{command.__module__}:{command.__qualname__}"
    before = read_attempt(run_dir)
    arguments = [location, str(manifest.folder.absolute()), str(job.number), *names, str(each or 0)]
    code = run_module("nfsd3d.jobs.rank", arguments, processes=processes, each=each, log=run_dir / LOG, stop=stop)
    _free(run_dir)  # if torchrun was killed, they save a checkpoint now
    status = recorded_status(manifest, job)
    if code != 0 and (status is None or read_attempt(run_dir) == before):
        return f"its {processes} processes ended with exit code {code}; see its log"
    summary = object_in(run_dir / SUMMARY)
    lost = status == "interrupted" and "signal" not in summary
    return f"{summary.get('reason')}" if lost else ""


def _free(run_dir: Path) -> bool:
    """Whether no process has the job; waits for one whose controller was killed, until it has saved its run."""
    deadline = time.monotonic() + ORPHANED
    while (taken := lock.live_owner(run_dir) is not None) and time.monotonic() < deadline:
        time.sleep(lock.PAUSE)
    return not taken


def _perform(command: Command, manifest: Manifest, job: Job, run_dir: Path, threads: int | None) -> None:
    """Runs the job's command line; an error ends in its summary instead of this process."""
    arguments = enter(manifest, job, threads)
    if manifest.kind != "compare" and arguments[0] != RESUME:
        remains.remove(run_dir)  # what a run has left that was not begun
    print(f"$ nfsd3d {shlex.join(arguments)}", flush=True)
    (run_dir / SUMMARY).unlink(missing_ok=True)
    try:
        with stop_requests() as stop, stop.at_once():
            command(arguments)
    except Interrupted as interruption:
        print(interruption, file=sys.stderr)
        name = signal.Signals(interruption.signum).name
        conclude(manifest, job, {"status": "interrupted", "reason": str(interruption), "signal": name})
        raise
    except Exception as error:  # whatever this job's error is, the others run
        print_error(error)
        reason = " ".join(str(error).split()) or type(error).__name__
        conclude(manifest, job, {"status": "failed", "reason": reason})


def enter(manifest: Manifest, job: Job, threads: int | None) -> list[str]:
    """Prepares this process for the job; returns the arguments that start it, or resume its run.

    Torch is limited to ``threads`` threads; numba's kernels take as many (`generators.nerf.launch_numba`).
    """
    if threads is not None:
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
        else:  # it reads them when it is imported, which takes a second: here a job that does nothing is spared it
            os.environ.update(cores.threads(threads))
    os.chdir(manifest.cwd)
    run_dir = manifest.run_dir(job)
    arguments = [*manifest.arguments, *job.arguments]
    if manifest.kind == "compare":
        return [*arguments, str(run_dir.absolute())]
    if can_be_resumed(run_dir):
        return [RESUME, str(run_dir)]
    return [*arguments, f"run_dir={run_dir.absolute()}"]


def conclude(manifest: Manifest, job: Job, outcome: dict[str, str]) -> None:
    """Writes the outcome of a job whose run has not written one.

    Raises:
        OSError: its directory cannot be written to.
    """
    run_dir = manifest.run_dir(job)
    if run_dir.is_dir() and recorded_status(manifest, job) is None:
        write_json(run_dir / SUMMARY, outcome)


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
        with suppress(OSError):  # a full disk
            stream.flush()
