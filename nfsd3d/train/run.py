"""A session of a run: from its configuration or its checkpoint to its results, whatever comes between."""

import shlex
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from nfsd3d.config.schema import Config
from nfsd3d.distill import methods
from nfsd3d.errors import InputError, RunFailed
from nfsd3d.runs import checkpoints
from nfsd3d.runs.files import write_text
from nfsd3d.runs.preflight import claim_run_dir
from nfsd3d.runs.summary import read_summary, write_summary
from nfsd3d.train.build import Parts, build_parts
from nfsd3d.train.compilation import compile_prior, release_compiled
from nfsd3d.train.interrupts import Interrupted, stop_requests
from nfsd3d.train.loop import Diverged, Progress, Task, train
from nfsd3d.train.memory.budget import fit_into_memory
from nfsd3d.train.memory.chunking import configured_chunks
from nfsd3d.train.plan import StepPlan
from nfsd3d.train.previews import preview
from nfsd3d.train.results import finish
from nfsd3d.train.step import step_loss


def train_and_export(config: Config, *, resume: Path | None = None, console: Console | None = None) -> Path:
    """Trains, then exports what ``config.export`` asks for; returns the run directory.

    ``resume`` is the directory of a run to continue from its newest checkpoint, with ``config`` in place of its
    former one. Otherwise the run starts in ``config.run_dir`` (a new directory under ``outputs/`` when that is None).

    Raises:
        InputError: nothing could be started with this configuration, directory or checkpoint.
        RunFailed: the run diverged (its last sound checkpoint is kept), or training is done and an export failed.
        Interrupted: SIGINT or SIGTERM; a checkpoint is saved, and the message says how to go on.
    """
    console = console or Console()
    run_dir = resume or _new_run_dir(config)
    checkpoint = None if resume is None else _checkpoint_to_resume(run_dir, config.train.steps)
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    progress = Progress() if checkpoint is None else Progress.resumed(checkpoints.load_header(checkpoint))
    task: Task | None = None
    training = False

    def summarize(status: str, reason: str | None = None, **results: Any) -> None:
        record = progress.record(0 if task is None else task.evaluations())
        if progress.smaller_chunks is not None:
            results["smaller_chunks"] = progress.smaller_chunks
        write_summary(
            run_dir,
            config,
            status=status,
            reason=reason,
            steps=progress.steps,
            seconds=record["seconds"],
            network_evaluations=record["network_evaluations"],
            final_metrics=record["metrics"],
            **results,
        )

    try:
        with stop_requests() as stop:
            with stop.at_once():
                # Of a run that goes on alone: one that could not start may have left its own in the folder.
                kept = run_dir / checkpoints.SOURCE if resume and (run_dir / checkpoints.SOURCE).is_file() else None
                parts = build_parts(config, kept_source=kept)
                if kept is None and (config.source_run is not None or config.source_image is not None):
                    checkpoints.save_source(run_dir, parts.generator)
                task = distillation(config, parts)
                if checkpoint is not None:
                    checkpoints.load(checkpoint, task.generator, task.optimizer, task.rng, task.lora)
                if config.machine.device != "cpu":
                    task = replace(task, chunks=fit_into_memory(config, parts, task.chunks, say))
                compile_prior(config, parts, task.chunks, say)
            write_text(run_dir / "config.yaml", config.to_yaml())
            training, progress.started = True, time.monotonic()
            train(config, run_dir, task, progress, stop, console)
            summarize("done")  # before the export: whatever happens there, the training is not lost
            task.release()
            exported = finish(config, run_dir, parts, console, on_view=stop.check)
    except Diverged as error:
        summarize("diverged", str(error))
        raise RunFailed(f"{run_dir}: diverged: {error}") from error
    except KeyboardInterrupt as error:
        signum = error.signum if isinstance(error, Interrupted) else signal.SIGINT
        summarize("interrupted", f"signal {signum:d} after step {progress.steps}")
        how = f"interrupted after step {progress.steps}; {_how_to_go_on(run_dir)}"
        raise Interrupted(signum, how) from error
    except torch.OutOfMemoryError as error:
        summarize("failed", f"out of GPU memory after step {progress.steps}")
        how = ", ".join([f"out of GPU memory after step {progress.steps}", *getattr(error, "__notes__", [])])
        remedy = "lower generator.max_samples, train.resolution or train.batch_size"
        if not training:
            how, remedy = "out of GPU memory before the first step", "free the GPU's memory, or choose a smaller prior"
        raise RunFailed(f"{run_dir}: {how}; {remedy}; {_how_to_go_on(run_dir)}") from error
    except Exception as error:
        if training or not isinstance(error, InputError):  # which started nothing: the run stays what it was
            summarize("failed", f"{type(error).__name__}: {error}")
        raise
    finally:
        if task is not None:
            task.release()
    summarize("done", exported.failure, exported=exported.files, mesh=exported.mesh)
    for name in exported.files:
        console.print(str(run_dir / name), markup=False, highlight=False, soft_wrap=True)
    if exported.failure is not None:
        mesh, everything = f"python scripts/export_mesh.py {shlex.quote(str(run_dir))}", resume_command(run_dir)
        remedy = f"the training is done; try again with: {mesh}, or everything with: {everything} export.KEY=VALUE"
        raise RunFailed(f"{run_dir}: {exported.failure}; {remedy}")
    return run_dir


def distillation(config: Config, parts: Parts) -> Task:
    """Training by score distillation."""

    def loss(plan: StepPlan) -> tuple[Tensor, dict[str, Tensor]]:
        generator, prior, rng = parts.generator, parts.prior, parts.rng
        arguments = parts.bank, parts.distillation, parts.ranges, plan, rng, parts.source
        return step_loss(generator, prior, *arguments, False)

    return Task(
        parts.generator,
        parts.optimizer,
        parts.rng,
        loss,
        preview=partial(preview, config, parts.generator, parts.prior),
        evaluations=lambda: parts.prior.evaluations,
        recount=lambda count: setattr(parts.prior, "evaluations", count),
        lora=parts.distillation.lora,
        chunks=configured_chunks(config.machine),
        release=partial(release_compiled, parts.prior),
    )


def resume_command(run_dir: Path) -> str:
    """The command that continues a run."""
    return f"python launch.py --resume {shlex.quote(str(run_dir))}"


def _new_run_dir(config: Config) -> Path:
    """The directory of a new run, existing and without another run in it."""
    if config.run_dir is None:
        config = claim_run_dir(config, config.distill.method)
    run_dir = Path(str(config.run_dir))
    if (run_dir / "config.yaml").exists():
        raise InputError(f"run_dir={run_dir}: holds a run already; choose another, or go on with --resume {run_dir}")
    return run_dir


def _checkpoint_to_resume(run_dir: Path, steps: int) -> Path:
    """The checkpoint from which a run of so many ``steps`` goes on.

    Raises:
        InputError: there is none, or it is of another method or beyond ``steps``.
    """
    _check_method(run_dir)
    checkpoint = checkpoints.latest(run_dir)
    done = checkpoints.load_header(checkpoint).steps
    if done > steps:
        raise InputError(f"train.steps={steps}: {run_dir} has {done} steps; set at least that")
    return checkpoint


def _how_to_go_on(run_dir: Path) -> str:
    if checkpoints.list_checkpoints(run_dir / "checkpoints"):
        return f"go on with: {resume_command(run_dir)}"
    return "start it anew"


def _check_method(run_dir: Path) -> None:
    """Raises InputError where distillation would go on from a run that something else has trained."""
    method = read_summary(run_dir).get("method")
    if method is not None and method not in methods.TABLE:
        raise InputError(
            f"{run_dir}: made by method={method}, not by distillation; it cannot be resumed, start it anew"
        )
