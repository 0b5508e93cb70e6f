"""One plain loop around the step, and what keeps its results while it goes on."""

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from nfsd3d.config.schema import Config
from nfsd3d.generators.base import Generator
from nfsd3d.generators.images import ImageBatch
from nfsd3d.generators.nerf.nerf import NeRF
from nfsd3d.runs import checkpoints
from nfsd3d.runs.metrics import MetricsWriter
from nfsd3d.train.interrupts import StopRequest
from nfsd3d.train.memory.chunking import ChunkSizes
from nfsd3d.train.plan import StepPlan, plan_at
from nfsd3d.train.progress_bar import Display
from nfsd3d.train.rng import fork
from nfsd3d.train.watchdog import Watchdog
from nfsd3d.visualize.images import Image, write_png

LACK_OF_MEMORY = ("out of memory", "ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED", "unable to find an engine")
"""What libraries besides torch say when a GPU has no memory left for them: Triton (its kernels), cuBLAS, cuDNN."""


@dataclass(frozen=True)
class Task:
    """What is trained, and the loss of a step.

    ``generator``, ``optimizer`` and ``rng`` change, and checkpoints keep them. ``step_loss`` gives for a step's plan a
    scalar to differentiate and metrics (scalars, ``grad_norm`` and a scene's ``opacity`` among them), drawing from
    ``rng`` and changing nothing that a repetition would not change in the same way. ``preview`` shows the generator as
    it is; ``evaluations`` tells how many samples a denoiser has evaluated so far, and ``recount`` sets that number back
    where a step is repeated. ``lora`` is VSD's second network, which ``step_loss`` leaves with its gradient.
    ``chunks`` are what a step computes at once, while memory suffices. ``release`` gives back what compiling took:
    ``step_loss`` goes on without.
    """

    generator: NeRF | ImageBatch
    optimizer: torch.optim.Optimizer
    rng: torch.Generator
    step_loss: Callable[[StepPlan], tuple[Tensor, dict[str, Tensor]]]
    preview: Callable[[], Image]
    evaluations: Callable[[], int] = lambda: 0
    recount: Callable[[int], None] = lambda count: None
    lora: checkpoints.Learner | None = None
    chunks: ChunkSizes = field(default_factory=ChunkSizes)
    release: Callable[[], None] = lambda: None


@dataclass
class Progress:
    """How far a run is, over all its sessions.

    ``steps`` are finished; ``metrics`` the last logged ones; ``earlier_seconds`` and ``earlier_evaluations`` (of the
    denoiser) what former sessions took. ``smaller_chunks`` (a :class:`ChunkSizes` as a dictionary, with the step
    ``from_step``) tells that this session's memory did not suffice for the configured ones.
    """

    steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    earlier_seconds: float = 0.0
    earlier_evaluations: int = 0
    smaller_chunks: dict[str, Any] | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Time that all sessions took together."""
        return self.earlier_seconds + time.monotonic() - self.started

    def record(self, evaluations: int) -> dict[str, Any]:
        """What a checkpoint keeps of it, after so many ``evaluations`` in this session; see :meth:`resumed`."""
        evaluations += self.earlier_evaluations
        return {"seconds": self.seconds, "network_evaluations": evaluations, "metrics": self.metrics}

    @classmethod
    def resumed(cls, restored: checkpoints.Restored) -> "Progress":
        """The progress of a run that goes on from a checkpoint."""
        record = restored.record
        return cls(restored.steps, record["metrics"], record["seconds"], record["network_evaluations"])


class Diverged(Exception):
    """The watchdog's reason to stop."""


def train(config: Config, run_dir: Path, task: Task, progress: Progress, stop: StopRequest, console: Console) -> None:
    """Steps from ``progress.steps`` to the end, with metrics, previews and checkpoints; updates ``progress``.

    Raises:
        Diverged: the run cannot recover; the last sound state is saved.
        Interrupted: a signal arrived; the state after the last finished step is saved.
        torch.OutOfMemoryError: a step does not fit in the smallest chunks; the state after the last finished one is
            saved.
    """
    settings, generator, optimizer = config.train, task.generator, task.optimizer
    watchdog = Watchdog(config.train.diverged, config.train.steps)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizers = [optimizer, *([] if task.lora is None else [task.lora.optimizer])]
    on_cpu = config.machine.device == "cpu"
    chunks = task.chunks
    unread: Tensor | None = None

    def save() -> None:
        checkpoints.save(
            run_dir / "checkpoints",
            progress.steps,
            generator,
            optimizer,
            task.rng,
            record=progress.record(task.evaluations()),
            keep=settings.keep_checkpoints,
            lora=task.lora,
        )

    with (
        MetricsWriter(run_dir, progress.steps, settings.tensorboard) as writer,
        Display(console, settings.steps, progress.steps) as display,
    ):
        for step in range(progress.steps, settings.steps):
            if stop.signum is not None:
                save()
                stop.check()
            plan = replace(plan_at(settings, step / settings.steps), chunks=chunks)
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * plan.learning_rate_factor

            before, evaluations = task.rng.get_state(), task.evaluations()
            try:
                if renew(task, step):
                    display.print(f"step {step + 1}: out of memory; from here on uncompiled")
                metrics, fitting = differentiate(task, plan)
            except torch.OutOfMemoryError:
                task.rng.set_state(before)
                task.recount(evaluations)
                save()
                raise
            if fitting != chunks:
                chunks, progress.smaller_chunks = fitting, {"from_step": step + 1, **asdict(fitting)}
                display.print(
                    f"step {step + 1}: out of memory; from here on {chunks}, which gives the same results, uncompiled"
                )
            limit = math.inf if settings.gradient_clip is None else settings.gradient_clip
            norm = metrics["grad_norm_parameters"] = torch.nn.utils.clip_grad_norm_(parameters, limit)

            # Reading a number makes a GPU wait, so that it is done only where it is logged; a CPU has it at hand. A bad
            # gradient never reaches the parameters: they stay sound until it is read.
            log = (step + 1) % settings.log_every == 0 or step + 1 == settings.steps
            if task.lora is not None:
                norm = torch.maximum(norm, torch.nn.utils.get_total_norm(gradients(task.lora.optimizer)))
            unread = norm if unread is None else torch.maximum(unread, norm)
            if not on_cpu:
                drop_unless_finite(optimizers, norm)
            if log or on_cpu:
                numbers = {name: float(value) for name, value in metrics.items()}
                reason = watchdog.observe(step + 1, numbers.get("opacity"), float(unread))
                unread = None
                if reason is not None:
                    writer.write({"step": step + 1, **numbers})
                    if all_finite(generator):
                        save()
                    raise Diverged(reason)
            for each in optimizers:
                each.step()
            progress.steps = step + 1

            if log:
                progress.metrics = {
                    **numbers,
                    "t_min": plan.t_min,
                    "t_max": plan.t_max,
                    "resolution": plan.resolution,
                    "learning_rate_factor": plan.learning_rate_factor,
                    "steps_per_second": display.steps_per_second(step + 1),
                    "seconds": progress.seconds,
                }
                writer.write({"step": step + 1, **progress.metrics})
            display.update(step + 1, progress.metrics if log else None)
            last = step + 1 == settings.steps
            if (step + 1) % settings.preview_every == 0 or last:
                write_png(run_dir / "previews" / f"step-{step + 1:06d}.png", task.preview())
            if (step + 1) % settings.checkpoint_every == 0 or last:
                if not all_finite(generator):
                    raise Diverged(f"parameters are not finite after step {step + 1}: lower train.learning_rate")
                save()


def renew(task: Task, step: int) -> bool:
    """Does what the generator does before a step; where memory runs out, once more without what compiling took.

    Returns whether it did run out.

    Raises:
        torch.OutOfMemoryError: nor does it fit then.
    """
    before = task.rng.get_state()
    try:
        with _lack_of_memory():
            task.generator.update(step, fork(task.rng))  # how much it draws depends on the scene
    except torch.OutOfMemoryError:
        task.rng.set_state(before)
    else:
        return False
    _free(task)
    with _lack_of_memory():
        task.generator.update(step, fork(task.rng))
    return True


def differentiate(task: Task, plan: StepPlan) -> tuple[dict[str, Tensor], ChunkSizes]:
    """Gives the parameters a step's gradient; returns its metrics, and the chunks that fitted into memory.

    Where memory runs out the step is begun anew in smaller chunks, with the same random numbers.

    Raises:
        torch.OutOfMemoryError: the smallest chunks do not fit either.
    """
    before, evaluations = task.rng.get_state(), task.evaluations()
    while True:
        task.optimizer.zero_grad(set_to_none=True)
        try:
            return _differentiated(task, plan), plan.chunks
        except torch.OutOfMemoryError as error:
            smaller = plan.chunks.smaller(plan.views, plan.resolution)
            if smaller is None:
                error.add_note("in the smallest chunks too")
                raise
        # Behind the handler: its exception holds on to the tensors of the step that failed.
        plan = replace(plan, chunks=smaller)
        task.rng.set_state(before)
        task.recount(evaluations)
        _free(task)  # smaller chunks would have to be compiled anew


def _differentiated(task: Task, plan: StepPlan) -> dict[str, Tensor]:
    """One attempt. The loss, and all that hangs on it, is this call's alone, and gone when it fails."""
    with _lack_of_memory():
        loss, metrics = task.step_loss(plan)
        loss.backward()
    return metrics


@contextmanager
def _lack_of_memory() -> Iterator[None]:
    """Whatever a library says when a GPU has no memory left is torch's error within the block."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or not any(words in str(error) for words in LACK_OF_MEMORY):
            raise
        raise torch.OutOfMemoryError(str(error)) from error


def _free(task: Task) -> None:
    """Gives the GPU what nobody uses, recorded graphs among it. Not within a handler, whose exception holds tensors."""
    task.release()
    gc.collect()
    torch.cuda.empty_cache()


def drop_unless_finite(optimizers: Sequence[torch.optim.Optimizer], norm: Tensor) -> None:
    """Makes all gradients 0 where ``norm``, a scalar, is no finite number, without waiting for it."""
    bad = ~norm.isfinite()
    for gradient in gradients(*optimizers):
        gradient.masked_fill_(bad, 0.0)


def gradients(*optimizers: torch.optim.Optimizer) -> list[Tensor]:
    """Those of all parameters that have one."""
    groups = (group for optimizer in optimizers for group in optimizer.param_groups)
    return [parameter.grad for group in groups for parameter in group["params"] if parameter.grad is not None]


def all_finite(generator: Generator) -> bool:
    """Whether every parameter is a finite number."""
    tensors = [parameter for group in generator.parameter_groups().values() for parameter in group]
    return bool(torch.stack([tensor.detach().isfinite().all() for tensor in tensors]).all())
