"""A training run: from its configuration or checkpoint to the exported results and ``summary.json``."""

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from nfsd3d.callbacks.callback import Callback, LiveRun
from nfsd3d.callbacks.dispatch import Callbacks
from nfsd3d.callbacks.steering import Controls
from nfsd3d.config.compose import load_run_config
from nfsd3d.config.schema import Config
from nfsd3d.distill import methods
from nfsd3d.errors import InputError, RunFailed
from nfsd3d.export.progress import print_line, waiting
from nfsd3d.generators.mesh.mesh import TexturedMesh
from nfsd3d.loggers import table as loggers
from nfsd3d.runs import checkpoints, identity
from nfsd3d.runs.absolute_paths import with_absolute_paths
from nfsd3d.runs.checkpoint_file import Checkpoint
from nfsd3d.runs.directory import claim_run_dir
from nfsd3d.runs.field_stage import needs_field
from nfsd3d.runs.files import write_text
from nfsd3d.runs.lock import check_owned, owned
from nfsd3d.runs.summary import read_summary
from nfsd3d.train.build import Parts, build_parts, check_steering, teacher_in_words
from nfsd3d.train.compilation import compile_prior
from nfsd3d.train.divergence import Diverged
from nfsd3d.train.interrupts import stop_requests
from nfsd3d.train.loop import train
from nfsd3d.train.memory.budget import fit_into_memory
from nfsd3d.train.outcome import Outcome, resume_command, shown
from nfsd3d.train.progress import Progress
from nfsd3d.train.ranks import Ranks
from nfsd3d.train.results import export_results
from nfsd3d.train.task import ScoreDistillation, Task
from nfsd3d.train.torchrun import ALONE, Worker
from nfsd3d.train.train_field import before, train_field


def train_and_export(
    config: Config,
    *,
    resume: Path | None = None,
    console: Console | None = None,
    worker: Worker = ALONE,
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Trains, then exports what ``config.export`` asks for; returns the run directory.

    ``resume`` is the directory of a run to continue from its newest checkpoint, with ``config`` in place of its
    former one. Otherwise the run starts in ``config.run_dir`` (a new directory under ``outputs/`` when that is None).
    ``worker`` is the first of several processes that share the run; in the others runs :func:`follow`. The
    ``callbacks`` are called after those of ``config.logger``.

    Raises:
        InputError: nothing could be started with this configuration, directory or checkpoint, or another process writes
            to the directory.
        RunFailed: the run diverged (its last sound checkpoint is kept), its files could not be written, or training is
            done and an export failed. Or another process of the run has ended; a checkpoint is saved.
        Interrupted: a signal (`nfsd3d.train.interrupts`); a checkpoint is saved, and the message says how to resume.
    """
    run_dir = resume or _new_run_dir(config)
    console = console or Console()
    with owned(run_dir):
        if resume is None and (run_dir / "config.yaml").exists():
            raise InputError(
                f"run_dir={run_dir}: holds a run already; choose another, or go on with --resume {run_dir}"
            )
        config = with_absolute_paths(config)
        begun = bool(checkpoints.list_checkpoints(run_dir / "checkpoints"))
        if resume is not None and not begun and config.refine is not None:
            config = config.replace(source_run=None)  # it was about to start from its field
        if needs_field(config):
            config, resume = _with_field(config, run_dir, console, worker, callbacks), None
        return _train_and_export(config, run_dir, resume, console, Ranks(worker), callbacks)


def _with_field(
    config: Config, run_dir: Path, console: Console, worker: Worker, callbacks: Sequence[Callback]
) -> Config:
    """Trains the field that the run begins with; returns the configuration of a run that starts from it.

    Raises:
        InputError: several processes share the run. Others: as :func:`train_and_export`.
    """
    if worker.count > 1:
        raise InputError(
            "generator=mesh: trains its field in one process; train the field first, and give it as source_run"
        )

    def trained(field: Config, resume: Path | None) -> None:
        print_line(console, f"a field first, in {shown(Path(str(field.run_dir)))}: {field.train.steps} steps")
        try:
            train_and_export(field, resume=resume, console=console, callbacks=callbacks)
        except (RunFailed, KeyboardInterrupt) as error:  # so that the run's own directory says it, too
            status = read_summary(Path(str(field.run_dir))).get("status", "failed")
            Outcome(config, run_dir, Progress()).summarize(status, f"its field: {error}")
            raise
        print_line(console, f"then the mesh: {config.train.steps} steps")

    return train_field(config, run_dir.absolute(), trained)


def follow(config: Config, worker: Worker) -> None:
    """Computes a share of the steps of the run that the first of several processes has begun; writes nothing.

    Raises:
        InputError: as :func:`train_and_export`.
        RunFailed: the run diverged, is out of memory, or another of its processes has ended.
        Interrupted: a signal, to one of the processes.
    """
    run_dir, console, ranks = Path(worker.published()), Console(quiet=True), Ranks(worker)
    try:
        with stop_requests() as stop, ranks.joined(config.machine.device), ExitStack() as cleanup:
            with stop.at_once():
                progress = ranks.from_first(Progress)
                _, task = _prepare(config, run_dir, [], ranks, cleanup, console)
            train(config, run_dir, task, progress, stop, console)
    except (Diverged, torch.OutOfMemoryError) as error:
        raise RunFailed(str(error)) from error


def _train_and_export(
    config: Config,
    run_dir: Path,
    resume: Path | None,
    console: Console,
    ranks: Ranks,
    callbacks: Sequence[Callback],
) -> Path:
    log = partial(print_line, console)
    found = [] if resume is None else [_checkpoint_to_resume(run_dir, config)]
    run_id = found[0].header.get("run") if found else None
    field = before(config, run_dir)
    progress = Progress.resumed(found[0]) if found else Progress.after(field)
    run, hooks = Outcome(config, run_dir, progress), _callbacks(config, console, callbacks)
    # The signals' handlers stay until the summary is written: a second signal must not cut that short.
    with _ended(hooks, run_dir), stop_requests() as stop, run.failures_in_summary(), ExitStack() as cleanup:
        with stop.at_once():
            ranks.worker.publish(str(run_dir))
        with ranks.joined(config.machine.device):
            with stop.at_once():
                ranks.from_first(lambda: progress)
                parts, task = _prepare(config, run_dir, found, ranks, cleanup, console)
            if resume is None or run_id is not None:  # a run of an earlier version keeps having none
                identity.write(run_dir, run_id)
            if resume is None:
                _keep_source(config, run_dir, parts)
            write_text(run_dir / "config.yaml", config.to_yaml())
            controls = Controls(partial(check_steering, config, parts.prior.schedule, progress), progress.steering)
            own = identity.read(run_dir)
            hooks.start(LiveRun(own, run_dir, config, parts.generator, parts.prior, progress.steps, controls))
            progress.start()
            train(config, run_dir, task, progress, stop, console, hooks, controls if hooks else None)
        progress.training_seconds = progress.seconds
        run.summarize("interrupted", "killed during the export")  # replaced when the export ends, however it does
        task.release_compiled()

        def on_view() -> None:
            if controls.stopped:
                stop.ask()
            stop.check()
            hooks.idle()

        on_view()
        exported = export_results(config, run_dir, parts, console, task.outlook, on_view=on_view)
        check_owned(run_dir)
        run.finish(exported)
    for name in exported.files:
        log(str(shown(run_dir) / name))
    if exported.failure is not None:
        mesh, everything = f"nfsd3d export {shlex.quote(str(shown(run_dir)))}", resume_command(run_dir)
        again = f"the training is done; try again with: {mesh}, or everything with: {everything} export.KEY=VALUE"
        raise RunFailed(f"{shown(run_dir)}: {exported.failure}; {again}")
    return run_dir


def _callbacks(config: Config, console: Console, given: Sequence[Callback]) -> Callbacks:
    """The loggers and the viewer that ``config`` asks for, and the ``given`` callbacks."""
    found = loggers.build(loggers.names_of(config.logger, config.train.tensorboard))
    if config.viewer:
        from nfsd3d.viewer.live import LiveViewer

        found.append(LiveViewer(config.viewer, console))
    return Callbacks([*found, *given])


@contextmanager
def _ended(callbacks: Callbacks, run_dir: Path) -> Iterator[None]:
    """Calls the callbacks with the summary after the block, however it ends."""
    try:
        yield
    finally:
        try:
            callbacks.end(read_summary(run_dir))
        except InputError:  # it cannot be read, for the reason that the run has failed
            callbacks.end({})


def _prepare(
    config: Config,
    run_dir: Path,
    found: list[Checkpoint],
    ranks: Ranks,
    cleanup: ExitStack,
    console: Console,
) -> tuple[Parts, Task]:
    """The parts and the task of a run, in the state of its checkpoint, with the prior compiled.

    ``found`` holds the checkpoint of a resumed run in the first process. It is emptied, because the checkpoint's
    tensors take as much memory as the task's.
    """
    log = partial(print_line, console)
    checkpoint = ranks.from_first(lambda: found.pop() if found else None)
    with waiting(console, f"loading {teacher_in_words(config)}"):
        parts = _build(config, run_dir, ranks, resumed=checkpoint is not None)
    task = ScoreDistillation.of(config, parts, ranks)
    cleanup.callback(task.release_compiled)
    if checkpoint is not None:
        checkpoints.load(checkpoint, task.generator, task.optimizer, task.rng, task.lora)
        log(f"resumed after step {checkpoint.steps}")
        del checkpoint
    config = ranks.worker.local(config)
    if config.machine.device != "cpu":
        task = replace(task, chunks=ranks.from_first(lambda: fit_into_memory(config, parts, task.chunks, log)))
    compile_prior(config, parts, task.chunks, log)
    return parts, task


def _build(config: Config, run_dir: Path, ranks: Ranks, *, resumed: bool) -> Parts:
    """The parts of a run; a resumed one keeps its source in ``run_dir``."""
    kept = run_dir / checkpoints.SOURCE
    if ranks.from_first(lambda: resumed and os.path.lexists(kept)):
        return build_parts(config, kept_source=kept)
    parts = build_parts(config, kept_source=None)
    for generator in (parts.generator, parts.source):
        if isinstance(generator, TexturedMesh) and not ranks.alone:  # how it is unwrapped can differ
            generator.load_state_dict(ranks.from_first(generator.state_dict))
    if resumed and ranks.first:  # before its checkpoint is loaded
        _keep_source(config, run_dir, parts)
    return parts


def _keep_source(config: Config, run_dir: Path, parts: Parts) -> None:
    """Saves the source of the run, if it has one, in its directory."""
    if not config.source_run is config.source_mesh is config.source_image is None:
        checkpoints.save_source(run_dir, parts.generator)


def _new_run_dir(config: Config) -> Path:
    """The directory of a new run; it exists."""
    if config.run_dir is None:
        config = claim_run_dir(config, config.distill.method)
    run_dir = Path(str(config.run_dir))
    check_owned(run_dir)  # one that was claimed and has gone since is not made again
    run_dir.mkdir(parents=True, exist_ok=True)
    return run_dir


def _checkpoint_to_resume(run_dir: Path, config: Config) -> Checkpoint:
    """The checkpoint from which a run is resumed with ``config``.

    A line on stderr names the settings that were edited in ``config.yaml`` since it was saved.

    Raises:
        InputError: there is none, or it is of another method or beyond the run's steps.
    """
    _check_method(run_dir)
    checkpoint = checkpoints.newest(run_dir)
    if checkpoint.steps > config.train.steps:
        raise InputError(f"train.steps={config.train.steps}: {run_dir} has {checkpoint.steps} steps; set at least that")
    trained = checkpoint.record.get("settings", {})
    if trained and (run_dir / "config.yaml").is_file():
        edited = identity.changes(trained, load_run_config(run_dir), config)
        if edited is not None:
            print(
                f"{shown(run_dir)}: resumed with settings that were changed in config.yaml: {edited}", file=sys.stderr
            )
    return checkpoint


def _check_method(run_dir: Path) -> None:
    """Raises InputError unless the run was trained by score distillation."""
    try:
        method = read_summary(run_dir).get("method")
    except InputError as error:
        print(error, file=sys.stderr)
        return
    if method is not None and method not in methods.TABLE:
        raise InputError(
            f"{run_dir}: made by method={method}, not by distillation; it cannot be resumed, start it anew"
        )
