"""Checkpoints of a training run, and its rollback to the last sound one after a divergence."""

from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from nfsd3d.config.schema import Config
from nfsd3d.errors import InputError
from nfsd3d.runs import checkpoints, identity
from nfsd3d.runs.lock import check_owned
from nfsd3d.train.divergence import Diverged, Watchdog, largest_parameter
from nfsd3d.train.progress import Progress
from nfsd3d.train.task import Task


@dataclass(frozen=True)
class Checkpointer:
    """Saves the state of ``task`` and ``progress`` in ``run_dir``; ``watchdog`` says whether it is sound; final.

    Of several processes the first one does.
    """

    config: Config
    run_dir: Path
    task: Task
    progress: Progress
    watchdog: Watchdog

    def start(self) -> None:
        """Saves the initial state of a new run as a sound checkpoint.

        Raises:
            InputError: the initial parameters are not finite.
        """
        largest, history = largest_parameter(self.task.generator), self.progress.history
        if not isfinite(largest):
            raise InputError(f"source_run={self.config.source_run}: has parameters that are not finite; choose another")
        history.parameters = largest if history.parameters is None else history.parameters
        if self.progress.steps == 0 and not checkpoints.list_checkpoints(self.run_dir / "checkpoints"):
            self._write(sound=True)

    def save(self) -> Path | None:
        """Saves the present state; it is sound if all its numbers are in their normal range.

        Returns the path of the checkpoint, in the process that writes it.
        """
        return self._write(sound=self.watchdog.sound(largest_parameter(self.task.generator)))

    def save_regular(self) -> Path | None:
        """As :meth:`save`, where the configuration asks for it: later parameters are compared with these.

        Raises:
            Diverged: the parameters are not finite, or far larger than earlier ones.
        """
        largest, history = largest_parameter(self.task.generator), self.progress.history
        sound = self.watchdog.sound(largest)
        if self.watchdog.parameters_exceed(largest):
            earlier, growth = history.parameters, self.config.train.diverged.growth
            raise Diverged(
                f"the largest parameter is {largest:.3g} after step {self.progress.steps}, and at most {earlier:.3g} "
                f"before (growth={growth:g}): lower train.learning_rate.*"
            )
        if sound:
            history.parameters = max(largest, history.parameters or 0.0)
        return self._write(sound)

    def roll_back(self, error: Diverged) -> str:
        """Restores the last sound checkpoint and removes all later ones; returns a line that announces the retry.

        Raises:
            Diverged: no retry or no sound checkpoint is left; the message says where the run stands.
        """
        limits, progress, task = self.config.train.diverged, self.progress, self.task
        try:
            sound = task.ranks.from_first(lambda: checkpoints.newest(self.run_dir, sound=True))
        except InputError as problem:
            raise Diverged(f"{error}; {problem}") from error
        check_owned(self.run_dir)
        checkpoints.load(sound, task.generator, task.optimizer, task.rng, task.lora)
        if task.ranks.first:
            checkpoints.remove_later(sound.path.parent, sound.steps)
        progress.go_back(sound)
        if progress.retries >= limits.retries or not error.retry:
            tried = f"after {progress.retries} of {limits.retries} retries " if progress.retries else ""
            steered = " and as it was steered" if progress.steered else ""
            raise Diverged(
                f"{error}; {tried}the run is back at step {progress.steps}, the last sound one, from where it diverges "
                f"again with the same settings{steered}"
            ) from error
        progress.retries += 1
        self._write(sound=True)  # with the number of retries, so that a resumed run has the same learning rates
        return (
            f"diverged: {error}; retry {progress.retries} of {limits.retries}: from step {progress.steps}, with "
            f"learning rates times {limits.retry_rate**progress.retries:g}"
        )

    def _write(self, sound: bool) -> Path | None:
        task, progress = self.task, self.progress
        if not task.ranks.first:
            return None
        check_owned(self.run_dir)
        return checkpoints.save(
            self.run_dir / "checkpoints",
            progress.steps,
            task.generator,
            task.optimizer,
            task.rng,
            record={**progress.record(), "settings": identity.settings(self.config)},
            keep=self.config.train.keep_checkpoints,
            lora=task.lora,
            sound=sound,
        )
