"""The oracle_fit of a run: the same NeRF, fitted to true views of what the prompt describes instead of being distilled.

Cameras, optimiser, learning rates, regularisers, resolution and number of steps are those of the run, and the steps go
through the same loop. What an oracle fit gets wrong is the renderer's and the recipe's doing; what a distilled run gets
wrong beyond that, the prior's or the method's.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from nfsd3d.cameras import Cameras, sample_cameras
from nfsd3d.config.schema import Config, TrainSettings
from nfsd3d.errors import InputError, RunFailed
from nfsd3d.generators.nerf.nerf import NeRF
from nfsd3d.runs.files import write_text
from nfsd3d.runs.preflight import claim_folder
from nfsd3d.runs.summary import write_summary
from nfsd3d.settings.cameras import CameraRanges
from nfsd3d.shapes.world.grammar import Composition, parse_prompt
from nfsd3d.shapes.world.render import render_views
from nfsd3d.train.build import build_generator, build_optimizer, viewing_cameras
from nfsd3d.train.interrupts import stop_requests
from nfsd3d.train.loop import Diverged, Progress, Task, train
from nfsd3d.train.memory.chunking import configured_chunks
from nfsd3d.train.plan import StepPlan, plan_at
from nfsd3d.train.previews import PREVIEW_VIEWS
from nfsd3d.train.regularizers import penalty
from nfsd3d.visualize.images import preview

METHOD = "oracle_fit"
"""What ``summary.json`` of a fit calls its method."""

TRUE_VIEWS = 256
"""True views that a fit draws from, at least: sphere tracing new ones for every step would take most of its time."""

# With one half the gradient on an image is its error. Over a fit's first hundred 64x64 steps that has a norm of 23, and
# what NFSD sends through the embedded encoder has one of 24: learning rates, AdamW's eps and the regularisers' weights
# mean the same in both. Weights 4 and 16 times as large gain 0.1 to 0.6 dB.
WEIGHT = 0.5
"""Of the squared error, summed over pixels and averaged over views."""


@dataclass(frozen=True)
class TrueBatch:
    """What a step's B ``cameras`` truly see: ``color`` [B,3,H,W] over black and ``coverage`` [B,1,H,W], in [0,1]."""

    cameras: Cameras
    color: Tensor
    coverage: Tensor

    def before(self, background: Tensor) -> Tensor:
        """[B,3,H,W] the views before plain colours ``background`` [B,3]."""
        return self.color + (1 - self.coverage) * background[:, :, None, None]

    def resized(self, size: int) -> "TrueBatch":
        """The same views, averaged down to ``size`` pixels squared."""
        cameras = self.cameras.resized(size, size)
        return replace(
            self,
            cameras=cameras,
            color=adaptive_avg_pool2d(self.color, size),
            coverage=adaptive_avg_pool2d(self.coverage, size),
        )


def fit_oracle(config: Config, run_dir: Path, console: Console | None = None) -> Path:
    """Fits the oracle fit of the run that ``config`` describes into ``run_dir``, a new directory, and returns that.

    The directory is a run's (`nfsd3d.api.load_run`), with ``method`` "oracle_fit" in its ``summary.json``, no prior,
    and ``psnr`` (of the last step's views, in dB) among the final metrics; nothing is exported. A fit takes minutes and
    cannot be resumed: it becomes a run when it is done.

    The true views are unlit: a NeRF that is shaded as its bare albedo shows one colour at a point from everywhere, and
    the true colours under even light are the only ones that it can match exactly. A distilled run has learnt colours
    with some of the prior's light in them, and is to be judged by what they show, not by this oracle_fit's brightness.

    Raises:
        InputError: the prompt is no canonical one of the world of shapes, or ``run_dir`` is in use.
        RunFailed: the fit diverged.
        nfsd3d.train.interrupts.Interrupted: SIGINT or SIGTERM.
    """
    console = console or Console()
    composition = _composition(config.prompt)
    claim_folder(run_dir)
    generator = build_generator(config)
    rng = torch.Generator().manual_seed(config.seed)
    batches = render_batches(composition, config.cameras, config.train, rng, generator.device, console)
    loss = partial(photometric_loss, generator, batches, rng)
    show = partial(preview, generator, viewing_cameras(config, PREVIEW_VIEWS, config.train.preview_size))
    chunks = configured_chunks(config.machine)
    task = Task(generator, build_optimizer(generator, config.train), rng, loss, show, chunks=chunks)
    progress = Progress()
    try:
        with stop_requests() as stop:
            train(config, run_dir, task, progress, stop, console)
    except Diverged as error:
        raise RunFailed(f"{run_dir}: diverged: {error}") from error
    write_text(run_dir / "config.yaml", config.to_yaml())
    # What was distilled, with which scale, and from what: the configuration says it, and nothing was.
    instead = {"method": METHOD, "guidance_scale": None, "prior": None}
    write_summary(
        run_dir,
        config,
        status="done",
        reason=None,
        steps=progress.steps,
        seconds=progress.seconds,
        network_evaluations=0,
        final_metrics=progress.metrics,
        **instead,
    )
    return run_dir


def render_batches(
    composition: Composition,
    ranges: CameraRanges,
    settings: TrainSettings,
    rng: torch.Generator,
    device: torch.device,
    console: Console,
) -> list[TrueBatch]:
    """At least ``TRUE_VIEWS`` unlit views from random training cameras, in batches of a step's, at its finest size."""
    steps, views = settings.steps, settings.batch_size
    size = max(plan_at(settings, step / steps).resolution for step in range(steps))
    black = torch.zeros(views, 3, size, size, device=device)
    batches = []
    bar = partial(track, description="true views", console=console, transient=True, disable=not console.is_terminal)
    for _ in bar(range(-(-TRUE_VIEWS // views))):
        cameras = sample_cameras(rng, views, size, ranges).to(device)
        truth = render_views([composition] * views, cameras, black, ambient=1.0)
        batches.append(TrueBatch(cameras, truth.image, truth.mask))
    return batches


def photometric_loss(
    generator: NeRF, batches: list[TrueBatch], rng: torch.Generator, plan: StepPlan
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a step on one of ``batches``: half the squared error, summed over pixels and averaged over views.

    The regularisers are added. Both images stand before the same plain random colours, so that the opacity is learnt.
    Metrics: ``grad_norm``, the mean over views of the L2 norm of the gradient on the image (of the squared error);
    ``psnr`` in dB; ``opacity``; ``samples_per_ray``.
    """
    batch = batches[int(torch.randint(len(batches), (), generator=rng))].resized(plan.resolution)
    background = torch.rand(plan.views, 3, generator=rng).to(batch.color.device)
    rendering = generator.render(
        batch.cameras,
        rng,
        background=background,
        normals=plan.regularizers["orient"] > 0,
        rays_per_chunk=plan.chunks.rays_per_chunk,
    )
    error = rendering.image - batch.before(background)
    loss = WEIGHT * error.square().sum() / plan.views + penalty(rendering, plan.regularizers)
    seen = error.detach()
    metrics = {
        "grad_norm": 2 * WEIGHT * seen.flatten(1).norm(dim=1).mean(),
        "psnr": -10 * seen.square().mean().log10(),
        "opacity": rendering.opacity.detach().mean(),
        "samples_per_ray": rendering.samples_per_ray,
    }
    return loss, metrics


def _composition(prompt: str) -> Composition:
    try:
        return parse_prompt(prompt)
    except ValueError as error:
        raise InputError(
            f"prompt={prompt}: no canonical prompt of the world of shapes; "
            'write one like "a purple house" or "a red and white dotted mushroom"'
        ) from error
