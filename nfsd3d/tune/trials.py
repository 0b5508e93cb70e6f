"""Hyperparameter search: trials of an Optuna study, whose runs are jobs, and whose mean objective is their value.

Problem: a search lasts days, on several machines; processes die, and a trial that was running must neither be lost nor
run twice.
Idea: a trial's folder belongs to the process that runs it (`nfsd3d.runs.lock`), which begins it, or takes it up if its
owner is dead, in its turn: while the study's folder belongs to it. Its runs go on from their checkpoints, and what it
has reported is in the study's journal.
Measurement: tests/engines/test_tune.py kills processes at each of these moments.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from nfsd3d.errors import InputError, RunFailed
from nfsd3d.jobs.controller import ENGINE, POLL, cancel, line_of, run
from nfsd3d.jobs.engines.base import EngineSettings
from nfsd3d.jobs.manifest import NAME as MANIFEST
from nfsd3d.jobs.manifest import Job, Manifest, resume_command, write
from nfsd3d.jobs.perform import Command
from nfsd3d.jobs.state import CANCELLED, JobState, Status, states
from nfsd3d.runs.files import write_json
from nfsd3d.runs.lock import live_owner, owned
from nfsd3d.runs.metrics import read_metrics, series
from nfsd3d.train.interrupts import Interrupted, StopRequest, stop_requests
from nfsd3d.tune.objective import objective_of
from nfsd3d.tune.report import PAGE, best_line, best_of, counts_line, overview, write_results
from nfsd3d.tune.tuning import Tuning, trial_folder

if TYPE_CHECKING:
    from nfsd3d.tune.study import Study  # needs Optuna

TURN = 90.0
"""Seconds after which a process that has waited for its turn gives up; a dead process's turn ends after 60."""
MOST_FAILURES = 3
"""Failed trials in a row after which the search ends: the cause is hardly in the settings."""


def tune(study: "Study", folder: Path, tuning: Tuning, settings: EngineSettings, command: Command) -> bool:
    """Runs trials of the ``study`` in ``folder`` by ``command`` until it has as many as it shall have; returns
    whether one is complete.

    Trials that have failed do not count. Other processes may do the same with the same folder at the same time.

    Raises:
        Interrupted: a signal ended it; the runs have saved checkpoints.
        RunFailed: several trials in a row have failed.
        InputError: the engine cannot be used.
    """
    failures = 0
    with stop_requests() as stop:
        (folder / CANCELLED).unlink(missing_ok=True)
        write_json(folder / ENGINE, asdict(settings))
        try:
            while (begun := _next(study, folder, tuning)) is not None:
                number, manifest, held = begun
                with held:
                    state = _Trial(study, folder, tuning, number, manifest).run(settings, command, stop)
                with _turn(folder):
                    write_results(folder, tuning, study.records())
                if state == "running":  # cancelled
                    print(f"cancelled; go on with: {resume_command(folder, 'tune')}", file=sys.stderr)
                    return False
                failures = failures + 1 if state == "fail" else 0
                stop.check()
                if failures == MOST_FAILURES:
                    reason = study.records()[number].reason
                    raise RunFailed(
                        f"{failures} trials in a row have failed, the last one: {reason}; "
                        f"go on with: {resume_command(folder, 'tune')}"
                    )
        except Interrupted as interruption:
            how = f"interrupted; go on with: {resume_command(folder, 'tune')}"
            raise Interrupted(interruption.signum, how) from interruption
        finally:
            records = study.records()
            best = best_of(tuning, records)
            print(counts_line(records))
            if best is not None:
                print(f"best: {best_line(tuning, best)}", folder / PAGE, sep="\n")
    return best is not None


def _next(study: "Study", folder: Path, tuning: Tuning) -> tuple[int, Manifest, ExitStack] | None:
    """A trial that no other process has, begun or taken up, its jobs, and its lock; None if there is none."""
    with _turn(folder), ExitStack() as held:
        records = study.records()
        running = [record.number for record in records if record.state == "running"]
        left = [number for number in running if live_owner(trial_folder(folder, number)) is None]
        if not left and sum(record.state != "fail" for record in records) >= tuning.trials:
            return None
        number = left[0] if left else study.begin()
        manifest = tuning.manifest(folder, number, study.values(number, tuning.dimensions))
        manifest.folder.mkdir(exist_ok=True)
        held.enter_context(owned(manifest.folder))
        if not (manifest.folder / MANIFEST).exists():
            write(manifest)
        write(overview(folder, tuning, study.records()))
        return number, manifest, held.pop_all()


class _Trial:
    """A trial while it runs in this process."""

    def __init__(self, study: "Study", folder: Path, tuning: Tuning, number: int, manifest: Manifest) -> None:
        self._study, self._folder, self._tuning = study, folder, tuning
        self._number, self._manifest = number, manifest
        self._together: Sequence[Job] = ()
        self._pruned = False

    def run(self, settings: EngineSettings, command: Command, stop: StopRequest) -> str:
        """Runs the trial's jobs and ends it; returns its state: complete, pruned, fail, or running if cancelled."""
        self._together = self._manifest.jobs[: settings.workers]
        while not self._with("diverged"):
            while self._with("running"):  # the worker of a dead controller saves a checkpoint
                stop.check()
                time.sleep(POLL)
            run(self._manifest, settings, command, on_end=self._on_end, on_look=self._on_look)
            if not self._with("running"):
                break
        self._report()
        if self._pruned and self._with("interrupted", "cancelled", "pending"):
            self._end(f"its {self._tuning.prune} was worse than the median", pruned=True)
        elif bad := self._with("diverged", "failed"):
            self._end(bad[0], pruned=bool(self._with("diverged")))
        elif (self._folder / CANCELLED).exists():
            return "running"
        elif others := self._with("interrupted", "cancelled", "pending"):
            self._end(others[0], pruned=False)
        else:
            self._complete(stop)
        return self._study.records()[self._number].state

    def _complete(self, stop: StopRequest) -> None:
        if self._tuning.prune is not None and not self._report():
            print(f"trial {self._number}: its runs log no {self._tuning.prune}; it prunes nothing", file=sys.stderr)
        try:
            value = objective_of(self._manifest, self._tuning)
        except InputError as error:
            stop.check()  # Ctrl-C ends the evaluation, too
            self._end(str(error), pruned=False)
            return
        self._study.complete(self._number, value)
        print(f"trial {self._number}: {self._tuning.objective} {value:.6g}", file=sys.stderr)

    def _end(self, reason: str, *, pruned: bool) -> None:
        self._study.end(self._number, reason, pruned=pruned)
        print(f"trial {self._number}: {'pruned' if pruned else 'failed'}: {reason}", file=sys.stderr)

    def _with(self, *statuses: Status) -> list[str]:
        """A line on each job with one of these states."""
        return [
            line_of(self._manifest, job, state) for job, state in states(self._manifest) if state.status in statuses
        ]

    def _on_end(self, job: Job, state: JobState) -> None:
        """Cancels the other jobs of a trial that cannot have a value any more."""
        del job
        if state.status in ("diverged", "failed"):
            cancel(self._manifest.folder)

    def _on_look(self) -> None:
        """Cancels the trial's jobs if the search is cancelled or the trial is to be pruned."""
        if (self._folder / CANCELLED).exists():
            cancel(self._manifest.folder)
        elif not self._pruned and self._report() and self._study.should_prune(self._number):
            self._pruned = True
            cancel(self._manifest.folder)

    def _report(self) -> bool:
        """Reports the pruning metric of the steps that all jobs that began together have logged; false without any.

        It is their mean, negated where a search for a high objective takes a high one as bad, or the reverse.
        """
        metric = self._tuning.prune
        if metric is None:
            return False
        sign = 1.0 if self._tuning.prune_low == self._tuning.maximize else -1.0
        paths = [self._manifest.run_dir(job) / "metrics.jsonl" for job in self._together]
        logged = [dict(series(read_metrics(path), metric)) for path in paths]
        steps = sorted(set(logged[0]).intersection(*logged[1:]))
        means = {int(step): sign * sum(values[step] for values in logged) / len(logged) for step in steps}
        self._study.report(self._number, means)
        return bool(steps)


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Within the block, no other process begins a trial, or takes one up.

    Raises:
        InputError: its turn has not come, or the folder cannot be written to.
    """
    deadline = time.monotonic() + TURN
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(owned(folder))
                break
            except InputError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield
