"""What became of a run: its summary, its page, and the errors that say how to go on."""

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from nfsd3d.callbacks.dispatch import CallbackFailed
from nfsd3d.config.schema import Config
from nfsd3d.errors import InputError, RunFailed
from nfsd3d.generators.mesh.surface import SurfaceMesh
from nfsd3d.runs import checkpoints
from nfsd3d.runs.field_stage import whole_run
from nfsd3d.runs.files import describe, remedy, storage_error
from nfsd3d.runs.lock import OwnerLost, check_owned
from nfsd3d.runs.summary import Summary, write_summary
from nfsd3d.train.divergence import Diverged
from nfsd3d.train.interrupts import Interrupted
from nfsd3d.train.progress import Progress
from nfsd3d.train.ranks import RankLost
from nfsd3d.train.results import Exported


@dataclass(frozen=True)
class Outcome:
    """Writes the summary of a run, its failures included."""

    config: Config
    run_dir: Path
    progress: Progress

    def summarize(
        self,
        status: str,
        reason: str | None = None,
        exported: Exported | None = None,
        signal_name: str | None = None,
        seconds: float | None = None,
    ) -> None:
        """Writes ``summary.json``; ``seconds`` is what the run has taken (None: until now)."""
        progress = self.progress
        outcome = Summary(
            status=status,
            reason=reason,
            steps=progress.steps,
            seconds=progress.seconds if seconds is None else seconds,
            training_seconds=progress.seconds if progress.training_seconds is None else progress.training_seconds,
            network_evaluations=progress.evaluations,
            final_metrics=progress.metrics,
        )
        if signal_name is not None:
            outcome["signal"] = signal_name
        if progress.smaller_chunks is not None:
            outcome["smaller_chunks"] = progress.smaller_chunks
        if progress.retries:
            outcome["retries"] = progress.retries
        if progress.steered:
            outcome["steered"] = progress.steered
        if exported is not None:
            outcome["exported"], outcome["mesh"] = exported.files, exported.mesh
        write_summary(self.run_dir, self.config, outcome)

    def finish(self, exported: Exported) -> None:
        """Writes the summary of a run with its results, and then the page, which shows it."""
        seconds, wanted = self.progress.seconds, self.config.export.report
        exported.files += ["report.html"] * wanted
        self.summarize("done" if exported.failure is None else "failed", exported.failure, exported, seconds=seconds)
        if not wanted:
            return
        before = exported.failure
        with exported.part("report"):
            self._write_report(exported.surface)
        if exported.failure != before:
            exported.files.remove("report.html")
            self.summarize("failed", exported.failure, exported, seconds=seconds)

    @contextmanager
    def failures_in_summary(self) -> Iterator[None]:
        """Writes an exception of the block to the summary, and raises it as an error that names the remedy."""
        progress, run_dir = self.progress, shown(self.run_dir)
        try:
            yield
        except Diverged as error:
            self._record("diverged", str(error))
            raise RunFailed(f"{run_dir}: diverged: {error}; {how_to_continue(run_dir)}") from error
        except KeyboardInterrupt as error:
            signum = error.signum if isinstance(error, Interrupted) else signal.SIGINT
            name = signal.Signals(signum).name
            self._record("interrupted", f"{name} after step {progress.steps}", name)
            how = f"interrupted by {name} after step {progress.steps}; {how_to_continue(run_dir)}"
            raise Interrupted(signum, how) from error
        except torch.OutOfMemoryError as error:
            self._record("failed", f"out of GPU memory after step {progress.steps}")
            how = ", ".join([f"out of GPU memory after step {progress.steps}", *getattr(error, "__notes__", [])])
            change = "lower generator.max_samples, train.resolution or train.batch_size"
            if not progress.training:
                how = "out of GPU memory before the first step"
                change = "free the GPU's memory, or choose a smaller prior"
            raise RunFailed(f"{run_dir}: {how}; {change}; {how_to_continue(run_dir)}") from error
        except InputError as error:
            if progress.training:  # otherwise nothing was started: the summary of a resumed run stays valid
                self._record("failed", f"{type(error).__name__}: {error}")
            raise
        except CallbackFailed as error:
            self._record("failed", str(error))
            raise CallbackFailed(f"{run_dir}: {error}; {how_to_continue(self.run_dir)}") from error.__cause__
        except RankLost as error:
            self._record("interrupted", f"{error} after step {progress.steps}")
            raise RunFailed(f"{run_dir}: {error} after step {progress.steps}; {how_to_continue(run_dir)}") from error
        except OwnerLost as error:
            raise RunFailed(f"{error}; {_after_loss(self.run_dir)}") from error
        except Exception as error:
            cause = error if isinstance(error, OSError) else storage_error(error)
            if cause is None:
                self._record("failed", f"{type(error).__name__}: {error}")
                raise
            reason = f"{describe(cause)} after step {progress.steps}"
            self._record("failed", reason)
            raise RunFailed(f"{run_dir}: {reason}; {remedy(cause)}, then {how_to_continue(run_dir)}") from error

    def _record(self, status: str, reason: str, signal_name: str | None = None) -> None:
        """Writes a failure to ``summary.json``, if it can be written and the directory still belongs to this process.

        If not, the failure itself matters more than that. A run that was resumed and not started keeps its summary.
        """
        if not self.progress.training and (self.run_dir / "summary.json").exists():
            return
        with suppress(OSError, InputError, RunFailed):
            check_owned(self.run_dir)
            self.summarize(status, reason, signal_name=signal_name)
            if self.config.export.report:
                with suppress(Exception):  # of damaged files
                    self._write_report()

    def _write_report(self, surface: SurfaceMesh | None = None) -> None:
        from nfsd3d.visualize.report import write_report  # .4 s, which the first step need not wait for

        write_report(self.run_dir, self.config, surface)


def resume_command(run_dir: Path) -> str:
    """The command that continues a run, by the program that this process was started with.

    A field that is part of a mesh's run is continued with that run.
    """
    run_dir = whole_run(run_dir)
    program = "python launch.py" if Path(sys.argv[0]).name == "launch.py" else "nfsd3d"
    return f"{program} --resume {shlex.quote(str(shown(run_dir)))}"


def shown(path: Path) -> Path:
    """``path`` relative to the working directory if it lies below, as the user may have given it."""
    with suppress(ValueError, OSError):
        return path.relative_to(Path.cwd())
    return path


def how_to_continue(run_dir: Path) -> str:
    """What an error advises: to resume the run, or to start it anew where there is no checkpoint."""
    with suppress(OSError):  # whether there is a checkpoint cannot be found out now
        if not checkpoints.list_checkpoints(run_dir / "checkpoints"):
            return "start it anew"
    return f"go on with: {resume_command(run_dir)}"


def _after_loss(run_dir: Path) -> str:
    """How to continue a run whose directory this process has lost."""
    if run_dir.is_dir():
        return f"when no other process has it, {how_to_continue(run_dir)}"
    return "if it was moved, go on with --resume and its new path, otherwise start it anew"
