"""The run: one plain loop around the step, and everything that keeps its results."""

import gc
import math
import shlex
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from nfsd3d.distill.methods import METHODS
from nfsd3d.errors import InputError, RunFailed
from nfsd3d.export.pictures import Image, write_png
from nfsd3d.files import write_text
from nfsd3d.generator import Generator
from nfsd3d.generator.nerf import NeRF
from nfsd3d.generator.pictures import Pictures
from nfsd3d.preflight import claim_run_dir
from nfsd3d.settings import Config
from nfsd3d.streams import fork
from nfsd3d.train import state
from nfsd3d.train.budget import fit_into_memory
from nfsd3d.train.build import Parts, build_parts
from nfsd3d.train.compilation import compile_prior, release_compiled
from nfsd3d.train.display import Display
from nfsd3d.train.finish import finish
from nfsd3d.train.interrupts import Interrupted, StopRequest, stop_requests
from nfsd3d.train.metrics import MetricsWriter
from nfsd3d.train.pieces import Pieces, configured_pieces
from nfsd3d.train.plan import StepPlan, plan_at
from nfsd3d.train.show import preview
from nfsd3d.train.step import step_loss
from nfsd3d.train.summary import read_summary, write_summary
from nfsd3d.train.watchdog import Limits, Watchdog


@dataclass(frozen=True)
class Task:
    """What is trained, and the loss of a step.

    ``generator``, ``optimizer`` and ``rng`` change, and checkpoints keep them. ``step_loss`` gives for a step's plan a
    scalar to differentiate and metrics (scalars, ``grad_norm`` and a scene's ``opacity`` among them), drawing from
    ``rng`` and changing nothing that a repetition would not change in the same way. ``preview`` shows the generator as
    it is; ``evaluations`` tells how many samples a denoiser has evaluated so far, and ``recount`` sets that number back
    where a step is repeated. ``particle`` is VSD's second network, which ``step_loss`` leaves with its gradient.
    ``pieces`` are what a step computes at once, while memory suffices. ``release`` gives back what compiling took:
    ``step_loss`` goes on without.
    """

    generator: NeRF | Pictures
    optimizer: torch.optim.Optimizer
    rng: torch.Generator
    step_loss: Callable[[StepPlan], tuple[Tensor, dict[str, Tensor]]]
    preview: Callable[[], Image]
    evaluations: Callable[[], int] = lambda: 0
    recount: Callable[[int], None] = lambda count: None
    particle: state.Learner | None = None
    pieces: Pieces = field(default_factory=Pieces)
    release: Callable[[], None] = lambda: None


@dataclass
class Progress:
    """How far a run is, over all its sessions.

    ``steps`` are finished; ``metrics`` the last logged ones; ``earlier_seconds`` and ``earlier_evaluations`` (of the
    denoiser) what former sessions took. ``smaller_pieces`` (a :class:`Pieces` as a dictionary, with the step
    ``from_step``) tells that this session's memory did not suffice for the configured ones.
    """

    steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    earlier_seconds: float = 0.0
    earlier_evaluations: int = 0
    smaller_pieces: dict[str, Any] | None = None
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
    def resumed(cls, restored: state.Restored) -> "Progress":
        """The progress of a run that goes on from a checkpoint."""
        record = restored.record
        return cls(restored.steps, record["metrics"], record["seconds"], record["network_evaluations"])


class Diverged(Exception):
    """The watchdog's reason to stop."""


def run(config: Config, *, resume: Path | None = None, console: Console | None = None) -> Path:
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
    progress = Progress() if checkpoint is None else Progress.resumed(state.load_header(checkpoint))
    task: Task | None = None
    training = False

    def summarize(status: str, reason: str | None = None, **results: Any) -> None:
        record = progress.record(0 if task is None else task.evaluations())
        if progress.smaller_pieces is not None:
            results["smaller_pieces"] = progress.smaller_pieces
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
                parts = build_parts(config)
                task = distillation(config, parts)
                if checkpoint is not None:
                    state.load(checkpoint, task.generator, task.optimizer, task.rng, task.particle)
                if config.machine.device != "cpu":
                    task = replace(task, pieces=fit_into_memory(config, parts, task.pieces, say))
                compile_prior(config, parts, task.pieces, say)
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
        particle=parts.distillation.particle,
        pieces=configured_pieces(config.machine),
        release=partial(release_compiled, parts.prior),
    )


def train(config: Config, run_dir: Path, task: Task, progress: Progress, stop: StopRequest, console: Console) -> None:
    """Steps from ``progress.steps`` to the end, with metrics, previews and checkpoints; updates ``progress``.

    Raises:
        Diverged: the run cannot recover; the last sound state is saved.
        Interrupted: a signal arrived; the state after the last finished step is saved.
        torch.OutOfMemoryError: a step does not fit in the smallest pieces; the state after the last finished one is
            saved.
    """
    settings, generator, optimizer = config.train, task.generator, task.optimizer
    watchdog = Watchdog(_limits(config))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizers = [optimizer, *([] if task.particle is None else [task.particle.optimizer])]
    on_cpu = config.machine.device == "cpu"
    pieces = task.pieces
    unread: Tensor | None = None

    def save() -> None:
        state.save(
            run_dir / "checkpoints",
            progress.steps,
            generator,
            optimizer,
            task.rng,
            record=progress.record(task.evaluations()),
            keep=settings.keep_checkpoints,
            particle=task.particle,
        )

    with (
        MetricsWriter(run_dir, progress.steps, settings.tensorboard) as writer,
        Display(console, settings.steps, progress.steps) as display,
    ):
        for step in range(progress.steps, settings.steps):
            if stop.signum is not None:
                save()
                stop.check()
            plan = replace(plan_at(settings, step / settings.steps), pieces=pieces)
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * plan.learning_rate_factor

            before, evaluations = task.rng.get_state(), task.evaluations()
            try:
                generator.update(step, fork(task.rng))  # how much it draws depends on the scene
                metrics, fitting = differentiate(task, plan)
            except torch.OutOfMemoryError:
                task.rng.set_state(before)
                task.recount(evaluations)
                save()
                raise
            if fitting != pieces:
                pieces, progress.smaller_pieces = fitting, {"from_step": step + 1, **asdict(fitting)}
                display.print(
                    f"step {step + 1}: out of memory; from here on {pieces}, which gives the same results, uncompiled"
                )
            limit = math.inf if settings.gradient_clip is None else settings.gradient_clip
            norm = metrics["grad_norm_parameters"] = torch.nn.utils.clip_grad_norm_(parameters, limit)

            # Reading a number makes a GPU wait, so that it is done only where it is logged; a CPU has it at hand. A bad
            # gradient never reaches the parameters: they stay sound until it is read.
            log = (step + 1) % settings.log_every == 0 or step + 1 == settings.steps
            if task.particle is not None:
                norm = torch.maximum(norm, torch.nn.utils.get_total_norm(gradients(task.particle.optimizer)))
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


def differentiate(task: Task, plan: StepPlan) -> tuple[dict[str, Tensor], Pieces]:
    """Gives the parameters a step's gradient; returns its metrics, and the pieces that fitted into memory.

    Where memory runs out the step is begun anew in smaller pieces, with the same random numbers.

    Raises:
        torch.OutOfMemoryError: the smallest pieces do not fit either.
    """
    before, evaluations = task.rng.get_state(), task.evaluations()
    while True:
        task.optimizer.zero_grad(set_to_none=True)
        try:
            return _differentiated(task, plan), plan.pieces
        except torch.OutOfMemoryError as error:
            smaller = plan.pieces.smaller(plan.views, plan.resolution)
            if smaller is None:
                error.add_note("in the smallest pieces too")
                raise
        # Behind the handler: its exception holds on to the tensors of the step that failed.
        plan = replace(plan, pieces=smaller)
        task.rng.set_state(before)
        task.recount(evaluations)
        task.release()  # recorded graphs hold memory, and smaller pieces would have to be compiled anew
        gc.collect()
        torch.cuda.empty_cache()


def _differentiated(task: Task, plan: StepPlan) -> dict[str, Tensor]:
    loss, metrics = task.step_loss(plan)
    loss.backward()
    return metrics


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
    checkpoint = state.latest(run_dir)
    done = state.load_header(checkpoint).steps
    if done > steps:
        raise InputError(f"train.steps={steps}: {run_dir} has {done} steps; set at least that")
    return checkpoint


def _how_to_go_on(run_dir: Path) -> str:
    if state.list_checkpoints(run_dir / "checkpoints"):
        return f"go on with: {resume_command(run_dir)}"
    return "start it anew"


def _check_method(run_dir: Path) -> None:
    """Raises InputError where distillation would go on from a run that something else has trained."""
    method = read_summary(run_dir).get("method")
    if method is not None and method not in METHODS:
        raise InputError(
            f"{run_dir}: made by method={method}, not by distillation; it cannot be resumed, start it anew"
        )


def _limits(config: Config) -> Limits:
    limits = config.train.diverged
    return Limits(
        first_step=math.ceil(limits.after * config.train.steps),
        window=limits.window,
        opacity_below=limits.opacity_below,
        opacity_above=limits.opacity_above,
    )
