"""Oracle fit of a run: the same NeRF fitted photometrically to true views instead of being distilled.

Cameras, optimiser, learning rates, regularisers, resolution, number of steps and training loop are those of the run.
Errors of the oracle fit are due to renderer and recipe; further errors of a distilled run to the prior or the method.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from nfsd3d.config.schema import Config
from nfsd3d.errors import RunFailed
from nfsd3d.evaluate.ground_truth import composition_of
from nfsd3d.generators.base import RenderOptions
from nfsd3d.generators.nerf.nerf import NeRF
from nfsd3d.runs import identity
from nfsd3d.runs.directory import claim_folder
from nfsd3d.runs.files import write_text
from nfsd3d.runs.lock import owned
from nfsd3d.runs.summary import Summary, write_summary
from nfsd3d.settings.cameras import CameraRanges
from nfsd3d.settings.train import TrainSettings
from nfsd3d.shapes.world.grammar import Composition
from nfsd3d.shapes.world.render import render_views
from nfsd3d.train.build import build_optimizer, viewing_cameras
from nfsd3d.train.build_generator import build_nerf
from nfsd3d.train.divergence import Diverged
from nfsd3d.train.interrupts import stop_requests
from nfsd3d.train.loop import train
from nfsd3d.train.memory.chunking import configured_chunks
from nfsd3d.train.plan import StepPlan, plan_at
from nfsd3d.train.previews import PREVIEW_VIEWS
from nfsd3d.train.progress import Progress
from nfsd3d.train.regularizers import penalty
from nfsd3d.train.step import StepMetrics, StepResult
from nfsd3d.train.task import Task
from nfsd3d.views.cameras import Cameras, sample_cameras
from nfsd3d.visualize.images import Image, preview

METHOD = "oracle_fit"
"""The method in ``summary.json`` of a fit."""

TRUE_VIEWS = 256
"""Least number of true views in a fit: sphere tracing new ones for every step would take most of its time."""

# With one half, the gradient on an image is its error. Over a fit's first hundred 64x64 steps its mean norm is 23;
# NFSD's gradient through the embedded encoder has 24. So learning rates, AdamW's eps and the regularisers' weights are
# comparable. Weights 4 and 16 times as large gain 0.1 to 0.6 dB.
WEIGHT = 0.5
"""Weight of the squared error, summed over pixels and averaged over views."""


@dataclass(frozen=True)
class TrueBatch:
    """True views of a step's B ``cameras``: ``color`` [B,3,H,W] over black and ``coverage`` [B,1,H,W], in [0,1]."""

    cameras: Cameras
    color: Tensor
    coverage: Tensor

    def before(self, background: Tensor) -> Tensor:
        """[B,3,H,W] the views over plain colours ``background`` [B,3]."""
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


@dataclass(frozen=True, kw_only=True)
class OracleFit(Task):
    """Photometric fitting of ``nerf`` to true views, drawn from ``batches``; final."""

    config: Config
    nerf: NeRF
    batches: list[TrueBatch]

    def step(self, plan: StepPlan) -> StepResult:
        """See :func:`photometric_loss`."""
        return photometric_loss(self.nerf, self.batches, self.rng, plan)

    def preview(self, on_view: Callable[[], None]) -> Image:
        """Views of the scene."""
        cameras = viewing_cameras(self.config, PREVIEW_VIEWS, self.config.train.preview_size)
        return preview(self.nerf, cameras, on_view)

    def release_compiled(self) -> None:
        """Nothing is compiled."""


def fit_oracle(config: Config, run_dir: Path, console: Console | None = None) -> Path:
    """Computes the oracle fit of the run that ``config`` describes in ``run_dir``, a new directory; returns
    ``run_dir``.

    The directory is a run's (`nfsd3d.api.load_run`), with ``method`` "oracle_fit" in its ``summary.json``, no prior,
    and ``psnr`` (of the last step's views, in dB) among the final metrics; nothing is exported. A fit takes minutes and
    cannot be resumed: it is moved into place when it is done.

    The true views are unlit: a NeRF rendered as plain albedo has one colour at a point from all directions, so it can
    match only unlit colours exactly. The colours of a distilled run include some of the prior's lighting; their
    brightness is not comparable with the oracle fit's.

    Raises:
        InputError: the prompt is not one of the world of shapes, or ``run_dir`` is in use.
        RunFailed: the fit diverged.
        nfsd3d.train.interrupts.Interrupted: a signal ended it.
    """
    console = console or Console()
    composition = composition_of(config.prompt)
    run_dir = claim_folder(run_dir)
    generator = build_nerf(config)
    rng = torch.Generator().manual_seed(config.seed)
    batches = render_batches(composition, config.cameras, config.train, rng, generator.device, console)
    task = OracleFit(
        generator=generator,
        optimizer=build_optimizer(generator, config.train),
        rng=rng,
        chunks=configured_chunks(config.machine),
        config=config,
        nerf=generator,
        batches=batches,
    )
    progress = Progress()
    with owned(run_dir):
        identity.write(run_dir)
        try:
            with stop_requests() as stop:
                train(config, run_dir, task, progress, stop, console)
        except Diverged as error:
            raise RunFailed(f"{run_dir}: diverged: {error}") from error
        write_text(run_dir / "config.yaml", config.to_yaml())
        # Settings of distillation have no effect on a fit.
        outcome = Summary(
            status="done",
            reason=None,
            method=METHOD,
            guidance_scale=None,
            prior=None,
            steps=progress.steps,
            seconds=progress.seconds,
            network_evaluations=0,
            final_metrics=progress.metrics,
        )
        write_summary(run_dir, config, outcome)
    return run_dir


def render_batches(
    composition: Composition,
    ranges: CameraRanges,
    settings: TrainSettings,
    rng: torch.Generator,
    device: torch.device,
    console: Console,
) -> list[TrueBatch]:
    """At least ``TRUE_VIEWS`` unlit views from random training cameras, in batches of a step, at the highest size."""
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


def photometric_loss(generator: NeRF, batches: list[TrueBatch], rng: torch.Generator, plan: StepPlan) -> StepResult:
    """The loss of a step on one of ``batches``: half the squared error, summed over pixels and averaged over views.

    The regularisers are added. Both images have the same plain random backgrounds, so that the opacity is learnt.
    Metrics: ``grad_norm``, the mean over views of the L2 norm of the gradient on the image (of the squared error);
    ``psnr`` in dB; ``opacity``; ``samples_per_ray``.
    """
    batch = batches[int(torch.randint(len(batches), (), generator=rng))].resized(plan.resolution)
    background = torch.rand(plan.views, 3, generator=rng).to(batch.color.device)
    normals = plan.regularizers["orient"] > 0
    options = RenderOptions(background, normals=normals, rays_per_chunk=plan.chunks.rays_per_chunk)
    rendering = generator.render(batch.cameras, rng, options)
    error = rendering.image - batch.before(background)
    loss = WEIGHT * error.square().sum() / plan.views + penalty(rendering, plan.regularizers)
    seen = error.detach()
    metrics = StepMetrics(
        grad_norm=2 * WEIGHT * seen.flatten(1).norm(dim=1).mean(),
        psnr=-10 * seen.square().mean().log10(),
        opacity=rendering.opacity.detach().mean(),
        samples_per_ray=rendering.samples_per_ray,
    )
    return StepResult(loss, metrics)
