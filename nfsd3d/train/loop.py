"""The training loop: gradient, optimiser, metrics, previews and checkpoints of every step."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from torch import Tensor

from nfsd3d.callbacks.dispatch import NONE, CallbackFailed, Callbacks
from nfsd3d.callbacks.events import StepEvent
from nfsd3d.callbacks.steering import Controls
from nfsd3d.config.schema import Config
from nfsd3d.export.progress import print_line
from nfsd3d.runs.checkpoint_file import step_of
from nfsd3d.runs.metrics import Metrics, MetricsWriter
from nfsd3d.runs.summary import SmallerChunks
from nfsd3d.train.divergence import (
    Diverged,
    Watchdog,
    drop_unless_finite,
    first_step_cause,
    gradients,
    largest_value,
)
from nfsd3d.train.interrupts import StopRequest
from nfsd3d.train.memory.chunking import ChunkSizes
from nfsd3d.train.memory.retry import run_step
from nfsd3d.train.plan import StepPlan, plan_at
from nfsd3d.train.previews import write_preview
from nfsd3d.train.progress import Progress
from nfsd3d.train.progress_bar import ProgressBar
from nfsd3d.train.ranks import RankLost
from nfsd3d.train.rollback import Checkpointer
from nfsd3d.train.step import StepResult
from nfsd3d.train.task import Task


def train(
    config: Config,
    run_dir: Path,
    task: Task,
    progress: Progress,
    stop: StopRequest,
    console: Console,
    callbacks: Callbacks = NONE,
    controls: Controls | None = None,
) -> None:
    """Steps from ``progress.steps`` to the end, with metrics, previews and checkpoints; updates ``progress``.

    The first process calls the ``callbacks`` and obeys the ``controls``, if there are any.

    A run that diverges goes back to its last sound checkpoint, and is retried from there with lower learning rates as
    often as ``train.diverged.retries`` allows.

    Raises:
        Diverged: the run cannot recover; ``task`` and the newest checkpoint are the last sound state.
        Interrupted: a signal arrived; the state after the last finished step is saved.
        torch.OutOfMemoryError: a step does not fit in the smallest chunks; the state after the last finished one is
            saved.
        RankLost: another process of the run has ended; the state after the last finished step is saved.
        CallbackFailed: by a callback; the state after the last finished step is saved.
    """
    while True:
        limits, cause, images = config.train.diverged, first_step_cause(config), config.generator.type == "image"
        watchdog = Watchdog(limits, config.train.steps, progress.history, cause, images=images)
        checkpointer = Checkpointer(config, run_dir, task, progress, watchdog)
        try:
            _run_steps(checkpointer, stop, console, callbacks, controls)
            return
        except Diverged as error:
            announcement = checkpointer.roll_back(error)
        print_line(console, announcement)
        callbacks.each("on_rollback", progress.steps, announcement)


def _run_steps(
    state: Checkpointer, stop: StopRequest, console: Console, callbacks: Callbacks, controls: Controls | None
) -> None:
    """The steps of :func:`train`, without a retry."""
    run_dir, task, progress, watchdog = state.run_dir, state.task, state.progress, state.watchdog
    first = task.ranks.first  # alone writes files
    settings, on_cpu, chunks = state.config.train, state.config.machine.device == "cpu", task.chunks
    slower = settings.diverged.retry_rate**progress.retries
    state.start()
    files = MetricsWriter(run_dir, progress.steps, settings.log_every) if first else nullcontext()
    with files as writer, ProgressBar(console, settings.steps, progress.steps) as bar:
        bar.later = task.outlook.whole_export
        for step in range(progress.steps, settings.steps):
            with _saving(state):
                changed = controls is not None and _obey(controls, state, stop, bar, callbacks)
                signum = task.ranks.stop_signal(stop.signum)
            if signum is not None:
                _save(state, callbacks)
                stop.signum = signum
                stop.check()
            plan = plan_at(settings, step / settings.steps).steered(progress.steering)
            plan = replace(plan, chunks=chunks, learning_rate_factor=plan.learning_rate_factor * slower)
            _set_learning_rates(task, plan.learning_rate_factor, slower)
            with _saving(state):
                result, chunks = run_step(task, plan, step, bar.print)
            done, last = step + 1, step + 1 == settings.steps
            progress.evaluations += result.evaluations
            if chunks != plan.chunks:
                progress.smaller_chunks = _smaller_chunks(done, chunks)

            norm, largest_norm = _clip_gradients(task, settings.gradient_clip)
            watchdog.add_norm(done, largest_norm)
            if not on_cpu:
                drop_unless_finite(task.optimizers, largest_norm)
            for optimizer in task.optimizers:
                optimizer.step()
            progress.steps = done

            log = done % settings.log_every == 0 or last or changed
            if log or on_cpu:  # reading a number synchronises with a GPU
                metrics = replace(result.metrics, grad_norm_parameters=norm)
                numbers = {name: float(value) for name, value in metrics.tensors().items()}
                largest = largest_value(task.generator) if log else None
                diverged = watchdog.observe(done, opacity=numbers.get("opacity"), largest_value=largest)
                if diverged is not None:
                    if writer is not None:
                        writer.write(done, cast("Metrics", numbers))
                    raise diverged
            if log:
                progress.metrics = _logged(numbers, plan, bar.steps_per_second(done), progress, result)
                if writer is not None:
                    writer.write(done, progress.metrics)
            bar.update(done, progress.metrics if log else None)
            preview = None
            if first and (done % settings.preview_every == 0 or last):
                preview = task.preview(task.outlook.stopwatch())
                bar.later = task.outlook.whole_export
                path = write_preview(run_dir, done, preview)
            with _saving(state):
                if callbacks:
                    event = StepEvent(done, settings.steps, result.tensors, result.metrics.tensors())
                    callbacks.each("on_step", event)
                    del event
                if log:
                    callbacks.each("on_metrics", done, progress.metrics)
                if preview is not None:
                    callbacks.each("on_preview", done, preview, path)
            del result  # its tensors take memory that the next step needs
            if done % settings.checkpoint_every == 0 or last:
                _announce(state.save_regular(), callbacks)


def _obey(controls: Controls, state: Checkpointer, stop: StopRequest, bar: ProgressBar, callbacks: Callbacks) -> bool:
    """Pauses, saves and stops as the ``controls`` ask for; returns whether the next step is steered anew."""
    progress, saved = state.progress, False
    while True:
        begin = time.monotonic()
        save = controls.wait(callbacks.idle, lambda: stop.signum is not None)
        waited = time.monotonic() - begin
        progress.started += waited
        bar.skip(waited)
        if not save:
            break
        if not saved:  # a callback may ask for it again
            _save(state, callbacks)
            saved = True
    if controls.stopped:
        stop.ask()
    if changed := controls.steering != progress.steering:
        progress.steered.append(controls.steering.record(progress.steps))
    return changed


def _save(state: Checkpointer, callbacks: Callbacks) -> None:
    _announce(state.save(), callbacks)


def _announce(saved: Path | None, callbacks: Callbacks) -> None:
    """Calls the callbacks with a checkpoint that this process has ``saved``."""
    if saved is not None:
        callbacks.each("on_checkpoint", step_of(saved), saved)


@contextmanager
def _saving(state: Checkpointer) -> Iterator[None]:
    """Saves the state after the last finished step if the block lacks memory, another process, or a callback fails."""
    try:
        yield
    except (torch.OutOfMemoryError, RankLost, CallbackFailed):
        state.save()
        raise


def _set_learning_rates(task: Task, factor: float, slower: float) -> None:
    """``factor`` is the generator's. The LoRA network's rate is constant but for ``slower``, which retries set."""
    for group in task.optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    for group in [] if task.lora is None else task.lora.optimizer.param_groups:
        group["lr"] = group.setdefault("base_lr", group["lr"]) * slower


def _clip_gradients(task: Task, limit: float | None) -> tuple[Tensor, Tensor]:
    """Clips the generator's gradient; returns its norm before, and the larger of that and the LoRA network's norm."""
    parameters = [parameter for group in task.optimizer.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, inf if limit is None else limit)
    if task.lora is None:
        return norm, norm
    return norm, torch.maximum(norm, torch.nn.utils.get_total_norm(gradients(task.lora.optimizer)))


def _smaller_chunks(step: int, chunks: ChunkSizes) -> SmallerChunks:
    return {
        "from_step": step,
        "rays_per_chunk": chunks.rays_per_chunk,
        "unet_batch_size": chunks.unet_batch_size,
        "checkpoint_encoder": chunks.checkpoint_encoder,
    }


def _logged(
    numbers: dict[str, float], plan: StepPlan, steps_per_second: float, progress: Progress, result: StepResult
) -> Metrics:
    """The numbers of a logged step: those that it reported, and those of its plan and of the run."""
    metrics = cast("Metrics", numbers)
    metrics["t_min"], metrics["t_max"] = plan.t_min, plan.t_max
    metrics["resolution"], metrics["learning_rate_factor"] = plan.resolution, plan.learning_rate_factor
    if result.tensors is not None:
        metrics["guidance_scale"] = result.tensors.guidance_scale
    metrics["steps_per_second"], metrics["seconds"] = steps_per_second, progress.seconds
    if progress.retries:
        metrics["retries"] = progress.retries
    if progress.steered:
        metrics["steered"] = len(progress.steered)
    return metrics
