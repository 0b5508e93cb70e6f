"""The jobs of a comparison: how a suite is planned, and the manifest of what is to be run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from nfsd3d.compare.cost import equal_steps
from nfsd3d.compare.records import Job, fingerprint, recipe_of, short_hash
from nfsd3d.compare.suite import Suite, overrides_of
from nfsd3d.config.compose import compose
from nfsd3d.config.schema import Config
from nfsd3d.errors import InputError
from nfsd3d.evaluate.classifier.model import WEIGHTS
from nfsd3d.evaluate.ground_truth import composition_of
from nfsd3d.jobs.engines.base import EngineSettings, check_run
from nfsd3d.jobs.manifest import Manifest, new_manifest
from nfsd3d.runs import preflight
from nfsd3d.runs.directory import slug
from nfsd3d.runs.summary import git_revision
from nfsd3d.train.build import model_files

ORACLE_FIT = "the oracle fit"
SAMPLE_SCALES = (7.5, 3.0)
_QUIET = {"export.mesh": False, "export.turntable": False, "export.report": False, "train.tensorboard": False}


@dataclass(frozen=True)
class PlannedJob(Job):
    """A job with its resolved ``config``."""

    config: Config
    revision: str | None
    guidance_scale: float | None = None

    @property
    def name(self) -> str:
        """A relative path that no other job shares."""
        row = f"{slug(self.row)}-{self.recipe}" + (f"-{self.prior}" if self.prior else "")
        return f"{row}/{slug(self.prompt)}-{self.seed}"

    @property
    def directory(self) -> str:
        """Its directory, relative to the comparison's."""
        return f"runs/{self.name}"

    @property
    def label(self) -> str:
        """The row, and whether it has the NFE of SDS."""
        return f"{self.row}, at equal evaluations" if self.equal else self.row

    def to_json(self) -> str:
        """The job on one line, for :meth:`from_json`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return json.dumps({**values, "config": self.config.to_dict()}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "PlannedJob":
        """The job that ``text`` describes.

        Raises:
            InputError: it describes none.
        """
        try:
            values = json.loads(text)
            return cls(**{**values, "config": Config.from_dict(values["config"])})
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"--job {text[:40]}: describes no job of a comparison; leave it out") from error


def manifest_of(jobs: Sequence[PlannedJob], folder: Path) -> Manifest:
    """The ``jobs`` as command lines; their directories, also those of runs, are in ``folder``/runs."""
    named = [
        (job.directory, [job.to_json()], {"row": job.label, "prompt": job.prompt, "seed": str(job.seed)})
        for job in jobs
    ]
    return new_manifest(folder, "compare", ("compare", "--job"), ("row", "prompt", "seed"), named)


def plan_jobs(suite: Suite, tier: str, engine: EngineSettings, *, oracle_fit: bool) -> list[PlannedJob]:
    """The jobs of a tier, prompt by prompt, so that an interrupted comparison has complete prompts to compare.

    If the suite sets ``equal_evaluations``, a row with a higher NFE than SDS has a second job with proportionally fewer
    steps. ``machine=auto`` is as the ``engine`` has it.

    Raises:
        InputError: a setting, a prompt or the prior cannot be used.
    """
    templates = _templates(suite, tier, engine, oracle_fit=oracle_fit)
    jobs = []
    for seed in suite.seeds:
        for prompt in suite.prompts:
            composition_of(prompt)
            for job in templates:
                if job.kind == "oracle_fit" and seed != suite.seeds[0]:
                    continue
                config = job.config.replace(prompt=prompt, seed=seed)
                preflight.check(config, elsewhere=engine.elsewhere)
                jobs.append(replace(job, prompt=prompt, seed=seed, config=config))
    return jobs


def _templates(suite: Suite, tier: str, engine: EngineSettings, *, oracle_fit: bool) -> list[PlannedJob]:
    """The jobs of a tier, without prompt and seed."""
    classifier, revision = fingerprint([WEIGHTS]), git_revision()
    fingerprints: dict[str, str] = {}
    templates: list[PlannedJob] = []
    for row, settings in suite.rows.items():
        config = compose(suite.config_of(row), [f"prompt={suite.prompts[0]}", *overrides_of(settings)], engine.machine)
        config = _changed(config, _QUIET)
        check_run(config, engine)
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
            templates.append(replace(run, equal=True, recipe=recipe_of(shorter, "run"), config=shorter))
    return templates


def _samples_of(run: PlannedJob, scale: float) -> PlannedJob:
    return replace(
        run,
        row=f"the prior's samples, s = {scale:g}",
        kind="samples",
        recipe=recipe_of(run.config, "samples", guidance_scale=scale),
        settings={"guidance_scale": scale},
        guidance_scale=scale,
    )


def _oracle_fit_of(run: PlannedJob) -> PlannedJob:
    recipe = recipe_of(run.config, "oracle_fit")
    return replace(run, row=ORACLE_FIT, kind="oracle_fit", recipe=recipe, prior="", settings={})


def _prior_fingerprint(config: Config, known: dict[str, str]) -> str:
    """A short hash of the prior's weights, and of the settings by which the same weights teach something else."""
    prior = config.prior
    name = repr(prior)
    if name not in known:
        files = model_files(config)
        found = fingerprint([*files.weights(), *(lora.path for lora in files.loras)])
        served = [prior.clock, prior.image_size, [lora.weight for lora in files.loras]]
        known[name] = found if served == ["own", None, []] else short_hash([found, served])
    return known[name]


def _changed(config: Config, changes: Mapping[str, bool | int]) -> Config:
    values = config.to_dict()
    for key, value in changes.items():
        group, name = key.split(".")
        values[group][name] = value
    return Config.from_dict(values)
