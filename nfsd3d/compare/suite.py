"""Suites: YAML files that name prompts, seeds and rows of settings, and their expansion into runs."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from nfsd3d.config.compose import load_run_config
from nfsd3d.config.experiments import find_experiment
from nfsd3d.config.renamed import notice
from nfsd3d.config.schema import Config
from nfsd3d.config.trust import Rules, check_file
from nfsd3d.config.yaml_files import read_yaml
from nfsd3d.errors import InputError
from nfsd3d.jobs.manifest import NAME, Job, Manifest, new_manifest, read
from nfsd3d.runs import identity
from nfsd3d.runs.absolute_paths import SETTINGS_OF_A_PRIOR, SETTINGS_OF_A_RUN
from nfsd3d.runs.directory import slug

_OF_A_JOB = {"prompt", "seed", "source_prompt", *SETTINGS_OF_A_RUN, *(f"prior.{name}" for name in SETTINGS_OF_A_PRIOR)}
"""Settings that jobs of a row differ in, or that a run has the absolute path of."""
TIERS = Path(__file__).parents[2] / "scripts" / "suites"


@dataclass(frozen=True)
class Suite:
    """A suite: every one of the ``prompts`` with every seed and row, each in a run of the experiment ``config``.

    ``rows`` are settings (by dotted key) by the row's name; a row's own ``config`` takes the place of the suite's.
    ``oracle_fit``: whether the first row's prompts also get an
    oracle fit. A comparison also reads ``baseline``, the row that each row is compared with, and ``equal_evaluations``,
    whether rows also run at the NFE of SDS. With ``edits``, the source prompts first run with the
    experiment ``source_config``; each row then edits them into each of their edits. ``clip`` is a CLIP model that
    scores prompts without ground truth.
    """

    config: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    rows: dict[str, dict[str, object]]
    oracle_fit: bool
    baseline: dict[str, str]
    equal_evaluations: bool
    edits: dict[str, tuple[str, ...]] = field(default_factory=dict)
    source_config: str = "nfsd"
    clip: str | None = None

    def selected(self, rows: Sequence[str] | None, prompts: int | None) -> "Suite":
        """The suite with only these rows (None: all), and at most this many prompts.

        Raises:
            InputError: no such row.
        """
        unknown = sorted(set(rows or ()) - self.rows.keys())
        if unknown:
            raise InputError(f"--row {unknown[0]}: no such row; there are {', '.join(self.rows)}")
        kept = {name: row for name, row in self.rows.items() if not rows or name in rows}
        return replace(self, rows=kept, prompts=self.prompts[:prompts])

    def config_of(self, row: str) -> str:
        """The experiment of a row."""
        return str(self.rows[row].get("config", self.config))

    def with_settings(self, settings: Mapping[str, object]) -> "Suite":
        """The suite with these settings in every row."""
        return replace(self, rows={name: {**row, **settings} for name, row in self.rows.items()})


_KEYS = {key.name for key in fields(Suite)}
"""The keys of a suite's YAML file."""


def tier_file(tier: str) -> Path:
    """The YAML file of a tier, given by name or path.

    Raises:
        InputError: no such name.
    """
    if Path(tier).suffix == ".yaml":
        return Path(tier)
    path = TIERS / f"tier-{tier}.yaml"
    if not path.exists():
        names = tier_names()
        known = f"choose one of {', '.join(names)}, or a" if names else "the tiers come with the source tree; give a"
        raise InputError(f"--tier {tier}: no such tier; {known} YAML file")
    return path


def tier_names() -> list[str]:
    """The names of the tiers that come with the source tree."""
    return sorted(found.stem.removeprefix("tier-") for found in TIERS.glob("tier-*.yaml"))


def load_suite(path: Path, option: str = "--suite") -> Suite:
    """The suite in a YAML file that the command line's ``option`` names.

    Raises:
        InputError: no such file, or a key is unknown, missing or of another type.
    """
    content: dict[str, Any] = read_yaml(path, f"{option} {path}", dotted_keys=True)
    check_file(content, f"{option} {path}", Rules())
    if "ceiling" in content:  # version 0.1's name
        notice(f"{path}: ceiling", "oracle_fit")
        content["oracle_fit"] = content.pop("ceiling")
    if unknown := ", ".join(sorted(set(content) - _KEYS)):
        raise InputError(f"{option} {path}: {unknown}; a suite has the keys {', '.join(sorted(_KEYS))}")
    edits = content.get("edits", {})
    if not isinstance(edits, dict) or not all(_is_list(targets, str) for targets in edits.values()):
        raise InputError(f"{option} {path}: edits must map the prompt of each source to a list of prompts")
    if edits and "prompts" in content:
        raise InputError(f"{option} {path}: prompts beside edits; the sources are the edits' keys, leave prompts out")
    prompts, seeds = list(map(str, edits)) or content.get("prompts", []), content.get("seeds", [0])
    rows = content.get("rows") or {str(content.get("config", "nfsd")): {}}
    if not _is_list(prompts, str) or not _is_list(seeds, int):
        raise InputError(f"{option} {path}: prompts must be a list of texts and seeds a list of whole numbers")
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise InputError(f"{option} {path}: rows must map each row's name to its settings, such as {{distill: sds}}")
    rows = {name: row for text, settings in rows.items() for name, row in _expanded(str(text), settings).items()}
    if wrong := [row["config"] for row in rows.values() if not isinstance(row.get("config", ""), str)]:
        raise InputError(f"{option} {path}: config={wrong[0]}: must be the name of an experiment, such as nfsd")
    for name, row in rows.items():
        if "config" in row:
            try:
                find_experiment(row["config"])
            except InputError as error:
                raise InputError(f"{option} {path}: row {name}: {str(error).removeprefix('--')}") from error
    if wrong := [key for row in rows.values() for key in row if not re.match(r"(?!hydra)[a-z]", str(key))]:
        raise InputError(f"{option} {path}: {wrong[0]}: not a setting of a run; leave it out")
    given = content.get("baseline") or {}
    baseline: dict[str, str] = given if isinstance(given, dict) else dict.fromkeys(rows, str(given))
    if not set(baseline) | set(baseline.values()) <= set(rows):
        raise InputError(f"{option} {path}: baseline={given}: names no row; the rows are {', '.join(rows)}")
    return Suite(
        config=str(content.get("config", "nfsd")),
        prompts=tuple(prompts),
        seeds=tuple(seeds),
        rows=rows,
        oracle_fit=bool(content.get("oracle_fit", False)),
        baseline=baseline,
        equal_evaluations=bool(content.get("equal_evaluations", False)),
        edits={str(source): tuple(targets) for source, targets in edits.items()},
        source_config=str(content.get("source_config", "nfsd")),
        clip=None if content.get("clip") is None else str(content["clip"]),
    )


def _expanded(name: str, settings: dict[str, object]) -> dict[str, dict[str, object]]:
    """The row itself, or one row for each combination of the values (by setting) in its ``grid``."""
    fixed = {key: value for key, value in settings.items() if key != "grid"}
    grid = settings.get("grid", {})
    if not isinstance(grid, dict):
        raise InputError(f"rows: {name}: grid={grid}: must map settings to lists of values")
    combinations = itertools.product(*([(key, value) for value in values] for key, values in grid.items()))
    return {
        ", ".join([name, *(f"{key.rpartition('.')[2]} {_text(value)}" for key, value in chosen)]): fixed | dict(chosen)
        for chosen in combinations
    }


def _is_list(value: object, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, kind) for item in value)


def manifest_of(suite: Suite, folder: Path) -> Manifest:
    """The runs of a suite in ``folder``: a folder per row, and in it one per prompt (or edit) and seed.

    A suite of edits begins with the runs of their sources, in the row "source".

    Raises:
        InputError: two runs would have the same directory.
    """
    pairs = list(itertools.product(suite.prompts, suite.seeds))
    sources = [_job("source", suite.source_config, [], *pair) for pair in pairs] if suite.edits else []
    jobs = list(sources)
    for row, settings in suite.rows.items():
        config, overrides = suite.config_of(row), overrides_of(settings)
        for prompt, seed in pairs:
            if not suite.edits:
                jobs.append(_job(row, config, overrides, prompt, seed))
            for target in suite.edits.get(prompt, ()):
                source = (folder / "source" / f"{slug(prompt)}-{seed}").absolute()
                edit = [f"source_run={source}", f"source_prompt={prompt}", *overrides]
                jobs.append(_job(row, config, edit, target, seed, f"{slug(prompt)}-to-"))
    return new_manifest(folder, "suite", (), ("row", "prompt", "seed"), jobs, leading=len(sources))


def _job(
    row: str, config: str, overrides: list[str], prompt: str, seed: int, before: str = ""
) -> tuple[str, list[str], dict[str, str]]:
    arguments = ["--config", config, *overrides, f"prompt={prompt}", f"seed={seed}"]
    values = {"row": row, "prompt": prompt, "seed": str(seed)}
    return f"{slug(row)}/{before}{slug(prompt)}-{seed}", arguments, values


def check_settings(manifest: Manifest, configs: Mapping[str, Config]) -> None:
    """Raises `InputError` if a run of an earlier call in the same directory has other settings.

    Whether on the suite's command line, or in the experiment that it names: ``configs`` has that of each row now.
    """
    if not (manifest.folder / NAME).exists():  # also of version 0.1, whose runs stay where they are
        return
    before = {job.directory: _settings_of(job) for job in read(manifest.folder).jobs}
    for job in manifest.jobs:
        run_dir, settings = manifest.run_dir(job), _settings_of(job)
        if not has_checkpoint(run_dir):
            continue
        if before.get(job.directory, settings) != settings:
            raise InputError(
                f"{run_dir}: a run with other settings than the suite has now; remove it, or choose another --output"
            )
        now, trained = configs[job.values[0]], identity.settings(load_run_config(run_dir))
        if edited := identity.changes({k: v for k, v in trained.items() if k not in _OF_A_JOB}, now, now):
            raise InputError(
                f"{run_dir}: a run of {job.arguments[1]} as it was; now it has {edited}; remove the run, or choose "
                "another --output"
            )


def _settings_of(job: Job) -> list[str]:
    return [argument for argument in job.arguments if not argument.startswith("source_run=")]  # a suite can be moved


def has_checkpoint(run_dir: Path) -> bool:
    """Whether a run can be resumed and scored."""
    return any((run_dir / "checkpoints").glob("step-*.json"))


def overrides_of(settings: dict[str, object]) -> list[str]:
    """A row's settings as ``key=value`` of the command line, without its experiment."""
    return [f"{key}={_text(value)}" for key, value in settings.items() if key != "config"]


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
