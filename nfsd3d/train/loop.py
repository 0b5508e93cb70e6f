"""The training loop: gradient, optimiser, metrics, previews and checkpoints of every step."""

import time
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from torch import Tensor

from nfsd3d.config.schema import Config
from nfsd3d.runs import checkpoints
from nfsd3d.runs.checkpoint_file import Checkpoint, Record
from nfsd3d.runs.lock import check_owned
from nfsd3d.runs.metrics import Metrics, MetricsWriter
from nfsd3d.runs.summary import SmallerChunks
from nfsd3d.train.divergence import Diverged, Watchdog, all_finite, drop_unless_finite, gradients
from nfsd3d.train.interrupts import StopRequest
from nfsd3d.train.memory.chunking import ChunkSizes
from nfsd3d.train.memory.retry import run_step
from nfsd3d.train.plan import StepPlan, plan_at
from nfsd3d.train.previews import write_preview
from nfsd3d.train.progress_bar import ProgressBar
from nfsd3d.train.task import Task


@dataclass
class Progress:
    """The progress of a run, summed over the first start and all resumptions.

    ``steps`` finished steps; ``metrics`` of the last logged step; ``evaluations`` the NFE so far; ``earlier_seconds``
    the time until the last resumption, and ``started`` when that was. ``training`` is false until the model is loaded.
    ``smaller_chunks`` are the chunk sizes that the out-of-memory retry has led to.
    """

    steps: int = 0
    metrics: Metrics = field(default_factory=lambda: Metrics())
    earlier_seconds: float = 0.0
    evaluations: int = 0
    smaller_chunks: SmallerChunks | None = None
    started: float = field(default_factory=time.monotonic)
    training: bool = False

    def start(self) -> None:
        """Begins training: the time of loading and compiling before it does not count."""
        self.training, self.started = True, time.monotonic()

    @property
    def seconds(self) -> float:
        """Time that the run has taken."""
        return self.earlier_seconds + time.monotonic() - self.started

    def record(self) -> Record:
        """What a checkpoint keeps of the progress; see :meth:`resumed`."""
        return {"seconds": self.seconds, "network_evaluations": self.evaluations, "metrics": self.metrics}

    @classmethod
    def resumed(cls, checkpoint: Checkpoint) -> "Progress":
        """The progress of a run that is resumed from a checkpoint."""
        record = checkpoint.record
        return cls(checkpoint.steps, record["metrics"], record["seconds"], record["network_evaluations"])


def train(config: Config, run_dir: Path, task: Task, progress: Progress, stop: StopRequest, console: Console) -> None:
    """Steps from ``progress.steps`` to the end, with metrics, previews and checkpoints; updates ``progress``.

    Raises:
        Diverged: the run cannot recover; the last finite state is saved.
        Interrupted: a signal arrived; the state after the last finished step is saved.
        torch.OutOfMemoryError: a step does not fit in the smallest chunks; the state after the last finished one is
            saved.
    """
    settings, on_cpu = config.train, config.machine.device == "cpu"
    optimizers = [task.optimizer, *([] if task.lora is None else [task.lora.optimizer])]
    save = partial(_save, run_dir, task, progress, settings.keep_checkpoints)
    watchdog, chunks = Watchdog(settings.diverged, settings.steps), task.chunks
    unread_norm: Tensor | None = None
    with (
        MetricsWriter(run_dir, progress.steps, settings.tensorboard, settings.log_every) as writer,
        ProgressBar(console, settings.steps, progress.steps) as bar,
    ):
        for step in range(progress.steps, settings.steps):
            if stop.signum is not None:
                save()
                stop.check()
            plan = replace(plan_at(settings, step / settings.steps), chunks=chunks)
            _set_learning_rates(task.optimizer, plan.learning_rate_factor)
            try:
                result, chunks = run_step(task, plan, step, bar.print)
            except torch.OutOfMemoryError:
                save()
                raise
            done, last = step + 1, step + 1 == settings.steps
            progress.evaluations += result.evaluations
            if chunks != plan.chunks:
                progress.smaller_chunks = _smaller_chunks(done, chunks)

            norm, largest_norm = _clip_gradients(task, settings.gradient_clip)
            unread_norm = largest_norm if unread_norm is None else torch.maximum(unread_norm, largest_norm)
            if not on_cpu:
                drop_unless_finite(optimizers, largest_norm)
            log = done % settings.log_every == 0 or last
            if log or on_cpu:  # reading a number synchronises with a GPU
                metrics = replace(result.metrics, grad_norm_parameters=norm)
                numbers = {name: float(value) for name, value in metrics.tensors().items()}
                reason = watchdog.observe(done, numbers.get("opacity"), float(unread_norm))
                unread_norm = None
                if reason is not None:
                    writer.write(done, cast("Metrics", numbers))
                    if all_finite(task.generator):
                        save()
                    raise Diverged(reason)
            for optimizer in optimizers:
                optimizer.step()
            progress.steps = done

            if log:
                progress.metrics = _logged(numbers, plan, bar.steps_per_second(done), progress.seconds)
                writer.write(done, progress.metrics)
            bar.update(done, progress.metrics if log else None)
            if done % settings.preview_every == 0 or last:
                write_preview(run_dir, done, task.preview())
            if done % settings.checkpoint_every == 0 or last:
                if not all_finite(task.generator):
                    raise Diverged(f"parameters are not finite after step {done}: lower train.learning_rate")
                save()


def _save(run_dir: Path, task: Task, progress: Progress, keep: int) -> None:
    check_owned(run_dir)
    checkpoints.save(
        run_dir / "checkpoints",
        progress.steps,
        task.generator,
        task.optimizer,
        task.rng,
        record=progress.record(),
        keep=keep,
        lora=task.lora,
    )


def _set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


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


def _logged(numbers: dict[str, float], plan: StepPlan, steps_per_second: float, seconds: float) -> Metrics:
    """The numbers of a logged step: those that it reported, and those of its plan."""
    metrics = cast("Metrics", numbers)
    metrics["t_min"], metrics["t_max"] = plan.t_min, plan.t_max
    metrics["resolution"], metrics["learning_rate_factor"] = plan.resolution, plan.learning_rate_factor
    metrics["steps_per_second"], metrics["seconds"] = steps_per_second, seconds
    return metrics
