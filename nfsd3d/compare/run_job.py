"""One job of a comparison: a run, an oracle fit or samples of the prior, and their scores."""

import time
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from nfsd3d.api import load_run
from nfsd3d.compare.collect import THUMBNAIL, clear
from nfsd3d.compare.jobs import PlannedJob
from nfsd3d.compare.records import Job, Record, Score
from nfsd3d.compare.scores import classifier_score, image_score, scene_score
from nfsd3d.config.compose import load_run_config
from nfsd3d.errors import RunFailed
from nfsd3d.evaluate.classifier.alignment import align, view_errors
from nfsd3d.evaluate.classifier.model import SIZE, Classifier
from nfsd3d.evaluate.ground_truth import composition_of
from nfsd3d.evaluate.oracle_fit import fit_oracle
from nfsd3d.evaluate.score_images import image_tensor
from nfsd3d.evaluate.score_scene import VIEWS, score_run
from nfsd3d.jobs.state import RECORD, SUMMARY
from nfsd3d.prior.base import CountedPrior
from nfsd3d.prior.sampling import ddim_sample
from nfsd3d.runs import checkpoints, directory
from nfsd3d.runs.files import write_json
from nfsd3d.runs.summary import read_summary
from nfsd3d.shapes.world.objects import OBJECTS
from nfsd3d.train.build import build_prior, viewing_cameras
from nfsd3d.train.run import train_and_export
from nfsd3d.views.cameras import sample_cameras
from nfsd3d.views.prompts import PromptBank
from nfsd3d.visualize.image_grid import grid, write_jpeg

SAMPLE_STEPS = 30
STRIP = 8
"""Views in the thumbnail of a scene."""

Images: TypeAlias = NDArray[np.uint8]
"""[N,H,W,3]."""


@dataclass(frozen=True)
class _Result:
    """The outcome of a job; ``images`` for its thumbnail are None without a checkpoint."""

    images: Images | None
    score: Score
    status: str
    steps: int
    seconds: float
    evaluations: int | None


def run_job(job: PlannedJob, run_dir: Path) -> Record:
    """Runs and scores a job in its directory; returns its record, which is in its summary then.

    An interrupted run is resumed. Its thumbnail lies beside the summary.

    Raises:
        nfsd3d.train.interrupts.Interrupted: a signal ended it; the run's checkpoint is saved.
    """
    cpu = time.process_time()
    classifier = _classifier()
    result = _sample(job, classifier) if job.kind == "samples" else _run(job, run_dir, classifier)
    if result.images is not None:
        write_jpeg(run_dir / THUMBNAIL, grid([list(result.images)]))
    record = Record(
        **{field.name: getattr(job, field.name) for field in fields(Job)},
        steps=result.steps,
        status=result.status,
        score=result.score,
        evaluations=result.evaluations,
        seconds=round(result.seconds, 1),
        cpu_seconds=round(time.process_time() - cpu, 1),
        image=None if result.images is None else f"images/{job.name}.jpg",
        revision=job.revision,
    )
    known = read_summary(run_dir)
    outcome = {"status": record.status, "steps": record.steps, "steps_planned": record.steps, "seconds": record.seconds}
    metrics = {**known.get("final_metrics", {}), **record.score}
    write_json(run_dir / SUMMARY, {**outcome, **known, "final_metrics": metrics, RECORD: asdict(record)})
    return record


@cache  # a worker process has many jobs
def _classifier() -> Classifier:
    return Classifier.load()


def _run(job: PlannedJob, run_dir: Path, classifier: Classifier) -> _Result:
    """Trains a run or an oracle fit, and scores it."""
    _train(job, run_dir)
    images, score = _scored(job, run_dir, classifier)
    summary = read_summary(run_dir)
    return _Result(
        images, score, summary["status"], summary["steps"], summary["seconds"], summary["network_evaluations"]
    )


def _train(job: PlannedJob, run_dir: Path) -> None:
    resumable = job.kind == "run" and bool(checkpoints.list_checkpoints(run_dir / "checkpoints"))
    if not resumable:
        clear(run_dir)
    try:
        if job.kind == "oracle_fit":
            fit_oracle(job.config, run_dir)
        elif resumable:
            train_and_export(load_run_config(run_dir), resume=run_dir)
        else:
            train_and_export(directory.claim_run_dir(job.config.replace(run_dir=str(run_dir)), "compare"))
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
