"""A comparison's jobs: what a tier asks for, and how one job is done and scored."""

import io
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from nfsd3d.api import load_run
from nfsd3d.cameras import Cameras, sample_cameras
from nfsd3d.compare.cost import equal_steps, evaluations_per_view
from nfsd3d.compare.records import Job, Record, fingerprint, recipe_of
from nfsd3d.compare.suite import Suite, overrides_of
from nfsd3d.config.compose import compose, load_run_config
from nfsd3d.config.schema import Config
from nfsd3d.errors import RunFailed
from nfsd3d.evaluate.classifier.alignment import align, view_errors
from nfsd3d.evaluate.classifier.model import SIZE, WEIGHTS, Classifier
from nfsd3d.evaluate.oracle_fit import fit_oracle
from nfsd3d.evaluate.score_images import image_tensor
from nfsd3d.evaluate.score_scene import VIEWS, composition_of, score_run
from nfsd3d.prior.schedule import ddim_sample
from nfsd3d.prompts import PromptBank
from nfsd3d.runs import checkpoints, preflight
from nfsd3d.runs.files import replacing
from nfsd3d.runs.summary import git_revision, read_summary
from nfsd3d.shapes.world.grammar import Composition
from nfsd3d.shapes.world.objects import OBJECTS
from nfsd3d.train.build import build_prior, model_files, viewing_cameras
from nfsd3d.train.run import train_and_export

ORACLE_FIT = "the oracle fit"
SAMPLE_SCALES = (7.5, 3.0)
SAMPLE_STEPS = 30
STRIP = 8
"""Views in the small picture of a scene."""

_QUIET = {"export.mesh": False, "export.turntable": False, "export.report": False, "train.tensorboard": False}
_JUDGED = ("margin", "object", "color", "pattern", "retrieved")
_SCORES = (*_JUDGED, "views_right", "iou", "ellipsoid_iou", "view_error_deg", "janus", "sharpness", "contrast")


@dataclass(frozen=True)
class Trial(Job):
    """A job to be done, with its whole ``config``; ``work`` is about what it costs, in evaluations of the network."""

    config: Config
    work: float
    revision: str | None
    guidance_scale: float | None = None

    @property
    def name(self) -> str:
        """A relative path that no other job shares."""
        row = f"{preflight.slug(self.row)}-{self.recipe}" + (f"-{self.prior}" if self.prior else "")
        return f"{row}/{preflight.slug(self.prompt)}-{self.seed}"


def trials_of(suite: Suite, tier: str, *, oracle_fit: bool) -> list[Trial]:
    """The jobs of a tier, prompt by prompt, so that what there is after an interruption can be compared.

    A row that spends more evaluations than SDS has a second job where the suite asks for equal evaluations, with as
    many fewer steps.

    Raises:
        InputError: a setting, a prompt or the prior cannot be used.
    """
    classifier, revision, priors = fingerprint([WEIGHTS]), git_revision(), dict[str, str]()
    templates: list[Trial] = []
    for row, settings in suite.rows.items():
        config = compose(suite.config, [f"prompt={suite.prompts[0]}", *overrides_of(settings)])
        config = _changed(config, _QUIET)
        prior = _prior_fingerprint(config, priors)

        def template(
            kind: str, config: Config, name: str = row, equal: bool = False, prior: str = prior, **more: Any
        ) -> Trial:
            recipe = recipe_of(config, kind, **more)
            work = _work(config, kind)
            given = suite.rows.get(name, {}) | more
            return Trial(
                tier, name, kind, "", 0, equal, recipe, prior, classifier, given, config, work, revision, **more
            )

        if not templates:
            templates += [
                template("samples", config, f"the prior's samples, s = {scale:g}", guidance_scale=scale)
                for scale in SAMPLE_SCALES
            ]
            if oracle_fit and not config.makes_images:
                templates.append(template("oracle_fit", config, ORACLE_FIT, prior=""))
        templates.append(template("run", config))
        steps = equal_steps(config)
        if suite.equal_evaluations and steps < config.train.steps:
            templates.append(template("run", _changed(config, {"train.steps": steps}), equal=True))
    trials = []
    for seed in suite.seeds:
        for prompt in suite.prompts:
            composition_of(prompt)
            for trial in templates:
                if trial.kind == "oracle_fit" and seed != suite.seeds[0]:
                    continue
                config = trial.config.replace(prompt=prompt, seed=seed)
                preflight.check(config)
                trials.append(Trial(**{**vars(trial), "prompt": prompt, "seed": seed, "config": config}))
    return trials


def perform(trial: Trial, output: Path, pictures: Path, classifier: Classifier, *, keep: bool = False) -> Record:
    """Does a job and scores it: the record, whose small picture lies in ``pictures``.

    A run that was interrupted goes on. Its directory, in ``output``/runs, is removed in the end unless ``keep``.

    Raises:
        nfsd3d.train.interrupts.Interrupted: SIGINT or SIGTERM; the run's checkpoint is saved.
    """
    run_dir = output / "runs" / trial.name
    started, cpu = time.monotonic(), time.process_time()
    if trial.kind == "samples":
        images, score, evaluations = _samples(trial, classifier)
        status, steps, seconds = "done", SAMPLE_STEPS, time.monotonic() - started
    else:
        _train(trial, run_dir)
        images, score = _look(trial, run_dir, classifier)
        summary = read_summary(run_dir)
        status, steps, seconds = summary["status"], summary["steps"], summary["seconds"]
        evaluations = summary["network_evaluations"]
    image = None if images is None else f"images/{trial.name}.jpg"
    if image is not None:
        write_jpeg(pictures / image, np.concatenate(list(images), axis=1), quality=90)
    if not keep:
        shutil.rmtree(run_dir, ignore_errors=True)
    shared = {name: getattr(trial, name) for name in Record.__dataclass_fields__ if hasattr(trial, name)}
    return Record(
        **shared,
        steps=steps,
        status=status,
        score=score,
        evaluations=evaluations,
        seconds=round(seconds, 1),
        cpu_seconds=round(time.process_time() - cpu, 1),
        image=image,
    )


def write_jpeg(path: Path, picture: np.ndarray, quality: int) -> None:
    """Writes a picture [H,W,3] atomically."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=quality)
    with replacing(path) as temporary:
        temporary.write_bytes(stream.getvalue())


def _prior_fingerprint(config: Config, known: dict[str, str]) -> str:
    name = repr(config.prior)
    if name not in known:
        known[name] = fingerprint(model_files(config).weights())
    return known[name]


def _changed(config: Config, changes: Mapping[str, Any]) -> Config:
    values = config.to_dict()
    for key, value in changes.items():
        group, name = key.split(".")
        values[group][name] = value
    return Config.from_dict(values)


def _work(config: Config, kind: str) -> float:
    pictures = config.train.batch_size if config.makes_images else VIEWS
    if kind == "samples":
        return 2.0 * SAMPLE_STEPS * pictures
    # A NeRF's rendering and its gradient take about as long as two evaluations of the embedded prior.
    rendering = 0.0 if config.makes_images else 2.0
    evaluations = evaluations_per_view(config) if kind == "run" else 0.0
    return (rendering + evaluations) * config.train.steps * config.train.batch_size


def _train(trial: Trial, run_dir: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    resumable = trial.kind == "run" and bool(checkpoints.list_checkpoints(run_dir / "checkpoints"))
    if not resumable:
        shutil.rmtree(run_dir, ignore_errors=True)
    try:
        if trial.kind == "oracle_fit":
            fit_oracle(trial.config, run_dir, console)
        elif resumable:
            train_and_export(load_run_config(run_dir), resume=run_dir, console=console)
        else:
            train_and_export(
                preflight.claim_run_dir(trial.config.replace(run_dir=str(run_dir)), "compare"), console=console
            )
    except RunFailed:
        if read_summary(run_dir).get("status") != "diverged":
            raise


def _look(trial: Trial, run_dir: Path, classifier: Classifier) -> tuple[Any, dict[str, Any]]:
    """Small pictures of a run [N,H,W,3], and its scores; None and no scores if it left no checkpoint."""
    if not checkpoints.list_checkpoints(run_dir / "checkpoints"):
        return None, {}
    run = load_run(run_dir)
    truth = composition_of(trial.prompt)
    if trial.config.makes_images:
        return run.images, _score_apart(image_tensor(run), truth, classifier)
    score = score_run(run, classifier, mesh=False)
    return run.views(STRIP, SIZE), {name: _plain(getattr(score, name)) for name in _SCORES}


def _samples(trial: Trial, classifier: Classifier) -> tuple[Any, dict[str, Any], int]:
    """Pictures that the prior draws itself for the views that a run is judged by, their scores, and evaluations.

    Of a scene one for each of the 24 views, with the words of that view, judged together as a run's views are.
    """
    config, truth = trial.config, composition_of(trial.prompt)
    rng = torch.Generator().manual_seed(trial.seed)
    cameras = (
        sample_cameras(rng, config.train.batch_size, SIZE, config.cameras)
        if config.makes_images
        else viewing_cameras(config, VIEWS, SIZE)
    )
    prior = build_prior(config)
    bank = PromptBank.build(prior, trial.prompt, config.negative_prompt, replace(config.prompts, perp_neg=False))
    contexts = bank.contexts(cameras)
    scale = float(trial.guidance_scale or 1.0)
    z = ddim_sample(prior, contexts["cond"], contexts["uncond"], guidance_scale=scale, steps=SAMPLE_STEPS, rng=rng)
    images = prior.decode(z).cpu()
    apart = config.makes_images
    score = _score_apart(images, truth, classifier) if apart else _score_together(images, cameras, truth, classifier)
    shown = images if apart else images[:: VIEWS // STRIP]
    return (shown.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy(), score, prior.evaluations


def _score_apart(images: Tensor, truth: Composition, classifier: Classifier) -> dict[str, Any]:
    """The means over pictures that are judged one by one."""
    alignment = align(classifier.classify(images), [truth] * len(images))
    means = {name: float(getattr(alignment, name).float().mean()) for name in _JUDGED}
    return means | {"margins": [round(value, 4) for value in alignment.margin.tolist()]}


def _score_together(images: Tensor, cameras: Cameras, truth: Composition, classifier: Classifier) -> dict[str, Any]:
    """The classifier on all views of one thing."""
    prediction = classifier.classify(images)
    together = align(prediction.pooled(), [truth])
    score: dict[str, Any] = {name: float(getattr(together, name).float()) for name in _JUDGED}
    if OBJECTS[truth.object].has_front:
        score["view_error_deg"], score["janus"] = map(float, view_errors(prediction, cameras.azimuth))
    return score


def _plain(value: float | bool | None) -> float | None:
    return None if value is None else float(value)
