"""The jobs of a comparison: how a suite is planned, and how one job is run and scored."""

import io
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from nfsd3d.api import load_run
from nfsd3d.compare.cost import equal_steps, evaluations_per_view
from nfsd3d.compare.records import Job, Record, Score, fingerprint, recipe_of
from nfsd3d.compare.scores import classifier_score, image_score, scene_score
from nfsd3d.compare.suite import Suite, overrides_of
from nfsd3d.config.compose import compose, load_run_config
from nfsd3d.config.schema import Config
from nfsd3d.errors import RunFailed
from nfsd3d.evaluate.classifier.alignment import align, view_errors
from nfsd3d.evaluate.classifier.model import SIZE, WEIGHTS, Classifier
from nfsd3d.evaluate.ground_truth import composition_of
from nfsd3d.evaluate.oracle_fit import fit_oracle
from nfsd3d.evaluate.score_images import image_tensor
from nfsd3d.evaluate.score_scene import VIEWS, score_run
from nfsd3d.prior.base import CountedPrior
from nfsd3d.prior.schedule import ddim_sample
from nfsd3d.runs import checkpoints, directory, lock, preflight
from nfsd3d.runs.summary import git_revision, read_summary
from nfsd3d.shapes.world.objects import OBJECTS
from nfsd3d.train.build import build_prior, model_files, viewing_cameras
from nfsd3d.train.run import train_and_export
from nfsd3d.views.cameras import sample_cameras
from nfsd3d.views.prompts import PromptBank
from nfsd3d.visualize.image_grid import grid, write_jpeg

ORACLE_FIT = "the oracle fit"
SAMPLE_SCALES = (7.5, 3.0)
SAMPLE_STEPS = 30
STRIP = 8
"""Views in the thumbnail of a scene."""

_QUIET = {"export.mesh": False, "export.turntable": False, "export.report": False, "train.tensorboard": False}

Images: TypeAlias = NDArray[np.uint8]
"""[N,H,W,3]."""


@dataclass(frozen=True)
class PlannedJob(Job):
    """A job with its resolved ``config``; ``work`` estimates its cost in NFE."""

    config: Config
    work: float
    revision: str | None
    guidance_scale: float | None = None

    @property
    def name(self) -> str:
        """A relative path that no other job shares."""
        row = f"{directory.slug(self.row)}-{self.recipe}" + (f"-{self.prior}" if self.prior else "")
        return f"{row}/{directory.slug(self.prompt)}-{self.seed}"


def plan_jobs(suite: Suite, tier: str, *, oracle_fit: bool) -> list[PlannedJob]:
    """The jobs of a tier, prompt by prompt, so that an interrupted comparison has complete prompts to compare.

    If the suite sets ``equal_evaluations``, a row with a higher NFE than SDS has a second job with proportionally fewer
    steps.

    Raises:
        InputError: a setting, a prompt or the prior cannot be used.
    """
    templates = _templates(suite, tier, oracle_fit=oracle_fit)
    jobs = []
    for seed in suite.seeds:
        for prompt in suite.prompts:
            composition_of(prompt)
            for job in templates:
                if job.kind == "oracle_fit" and seed != suite.seeds[0]:
                    continue
                config = job.config.replace(prompt=prompt, seed=seed)
                preflight.check(config)
                jobs.append(replace(job, prompt=prompt, seed=seed, config=config))
    return jobs


def _templates(suite: Suite, tier: str, *, oracle_fit: bool) -> list[PlannedJob]:
    """The jobs of a tier, without prompt and seed."""
    classifier, revision = fingerprint([WEIGHTS]), git_revision()
    fingerprints: dict[str, str] = {}
    templates: list[PlannedJob] = []
    for row, settings in suite.rows.items():
        config = compose(suite.config, [f"prompt={suite.prompts[0]}", *overrides_of(settings)])
        config = _changed(config, _QUIET)
        run = PlannedJob(
            tier=tier,
            row=row,
            kind="run",
            prompt="",
            seed=0,
            equal=False,
            recipe=recipe_of(config, "run"),
            prior=_prior_fingerprint(config, fingerprints),
            classifier=classifier,
            settings=settings,
            config=config,
            work=_work(config, "run"),
            revision=revision,
        )
        if not templates:
            templates += [_samples_of(run, scale) for scale in SAMPLE_SCALES]
            if oracle_fit and not config.makes_images:
                templates.append(_oracle_fit_of(run))
        templates.append(run)
        steps = equal_steps(config)
        if suite.equal_evaluations and steps < config.train.steps:
            shorter = _changed(config, {"train.steps": steps})
            recipe, work = recipe_of(shorter, "run"), _work(shorter, "run")
            templates.append(replace(run, equal=True, recipe=recipe, config=shorter, work=work))
    return templates


def _samples_of(run: PlannedJob, scale: float) -> PlannedJob:
    return replace(
        run,
        row=f"the prior's samples, s = {scale:g}",
        kind="samples",
        recipe=recipe_of(run.config, "samples", guidance_scale=scale),
        settings={"guidance_scale": scale},
        work=_work(run.config, "samples"),
        guidance_scale=scale,
    )


def _oracle_fit_of(run: PlannedJob) -> PlannedJob:
    recipe, work = recipe_of(run.config, "oracle_fit"), _work(run.config, "oracle_fit")
    return replace(run, row=ORACLE_FIT, kind="oracle_fit", recipe=recipe, prior="", settings={}, work=work)


@dataclass(frozen=True)
class _Result:
    """The outcome of a job; ``images`` for its thumbnail are None without a checkpoint."""

    images: Images | None
    score: Score
    status: str
    steps: int
    seconds: float
    evaluations: int | None


def perform(job: PlannedJob, output: Path, images: Path, classifier: Classifier, *, keep: bool = False) -> Record:
    """Runs and scores a job; returns its record, and writes its thumbnail to ``images``.

    An interrupted run is resumed. Its directory, in ``output``/runs, is removed in the end unless ``keep``.

    Raises:
        nfsd3d.train.interrupts.Interrupted: a signal ended it; the run's checkpoint is saved.
    """
    run_dir, cpu = output / "runs" / job.name, time.process_time()
    result = _sample(job, classifier) if job.kind == "samples" else _run(job, run_dir, classifier, keep=keep)
    image = None if result.images is None else f"images/{job.name}.jpg"
    if image is not None and result.images is not None:
        (images / image).parent.mkdir(parents=True, exist_ok=True)
        write_jpeg(images / image, grid([list(result.images)]))
    return Record(
        tier=job.tier,
        row=job.row,
        kind=job.kind,
        prompt=job.prompt,
        seed=job.seed,
        equal=job.equal,
        recipe=job.recipe,
        prior=job.prior,
        classifier=job.classifier,
        settings=job.settings,
        steps=result.steps,
        status=result.status,
        score=result.score,
        evaluations=result.evaluations,
        seconds=round(result.seconds, 1),
        cpu_seconds=round(time.process_time() - cpu, 1),
        image=image,
        revision=job.revision,
    )


def _prior_fingerprint(config: Config, known: dict[str, str]) -> str:
    name = repr(config.prior)
    if name not in known:
        known[name] = fingerprint(model_files(config).weights())
    return known[name]


def _changed(config: Config, changes: Mapping[str, bool | int]) -> Config:
    values = config.to_dict()
    for key, value in changes.items():
        group, name = key.split(".")
        values[group][name] = value
    return Config.from_dict(values)


def _work(config: Config, kind: str) -> float:
    images = config.train.batch_size if config.makes_images else VIEWS
    if kind == "samples":
        return 2.0 * SAMPLE_STEPS * images
    # Rendering a NeRF, forward and backward, takes about as long as two evaluations of the embedded prior.
    rendering = 0.0 if config.makes_images else 2.0
    evaluations = evaluations_per_view(config) if kind == "run" else 0.0
    return (rendering + evaluations) * config.train.steps * config.train.batch_size


def _run(job: PlannedJob, run_dir: Path, classifier: Classifier, *, keep: bool) -> _Result:
    """Trains a run or an oracle fit, and scores it.

    Raises:
        InputError: another process has its directory.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with lock.owned(run_dir):
        _train(job, run_dir)
        images, score = _scored(job, run_dir, classifier)
        summary = read_summary(run_dir)
        if not keep:
            shutil.rmtree(run_dir, ignore_errors=True)
    return _Result(
        images, score, summary["status"], summary["steps"], summary["seconds"], summary["network_evaluations"]
    )


def _train(job: PlannedJob, run_dir: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    resumable = job.kind == "run" and bool(checkpoints.list_checkpoints(run_dir / "checkpoints"))
    for entry in [] if resumable else run_dir.iterdir():
        if not entry.name.startswith(lock.NAME):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    try:
        if job.kind == "oracle_fit":
            fit_oracle(job.config, run_dir, console)
        elif resumable:
            train_and_export(load_run_config(run_dir), resume=run_dir, console=console)
        else:
            config = directory.claim_run_dir(job.config.replace(run_dir=str(run_dir)), "compare")
            train_and_export(config, console=console)
    except RunFailed:
        if read_summary(run_dir).get("status") != "diverged":
            raise


def _scored(job: PlannedJob, run_dir: Path, classifier: Classifier) -> tuple[Images | None, Score]:
    """Images of a run for its thumbnail, and its scores; None and no scores without a finished step."""
    if not any(map(checkpoints.step_of, checkpoints.list_checkpoints(run_dir / "checkpoints"))):
        return None, {}
    run = load_run(run_dir)
    if job.config.makes_images:
        return run.images, image_score(image_tensor(run), composition_of(job.prompt), classifier)
    return run.views(STRIP, SIZE), scene_score(score_run(run, classifier, mesh=False))


def _sample(job: PlannedJob, classifier: Classifier) -> _Result:
    """Samples of the prior itself for the views that a run is scored by.

    For a scene there is one for each of the 24 views, with that view's words, pooled like a run's views.
    """
    started = time.monotonic()
    config, truth = job.config, composition_of(job.prompt)
    rng = torch.Generator().manual_seed(job.seed)
    cameras = (
        sample_cameras(rng, config.train.batch_size, SIZE, config.cameras)
        if config.makes_images
        else viewing_cameras(config, VIEWS, SIZE)
    )
    prior = CountedPrior(build_prior(config))
    bank = PromptBank.build(prior, job.prompt, config.negative_prompt, replace(config.prompts, perp_neg=False))
    contexts = bank.contexts(cameras)
    scale = float(job.guidance_scale or 1.0)
    z = ddim_sample(prior, contexts["cond"], contexts["uncond"], guidance_scale=scale, steps=SAMPLE_STEPS, rng=rng)
    images = prior.decode(z).cpu()
    if config.makes_images:
        score, shown = image_score(images, truth, classifier), images
    else:
        prediction = classifier.classify(images)
        score = classifier_score(align(prediction.pooled(), [truth]))
        if OBJECTS[truth.object].has_front:
            score["view_error_deg"], score["janus"] = map(float, view_errors(prediction, cameras.azimuth))
        shown = images[:: VIEWS // STRIP]
    pixels = (shown.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    return _Result(pixels, score, "done", SAMPLE_STEPS, time.monotonic() - started, prior.evaluations)
