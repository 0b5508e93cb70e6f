"""A sweep, ``-m seed=0,1 distill=sds,nfsd``: its jobs are checked, written down, and given to an engine.

A sweep's directory holds a run directory for each job, ``<n>-<values>``, and the tables and the page of
``nfsd3d sweep report``.
"""

import itertools
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from nfsd3d.cli.engine_options import settings_of
from nfsd3d.cli.launch import announce
from nfsd3d.cli.prompt_file import prompts_of_file
from nfsd3d.cli.sweep import run_and_report
from nfsd3d.config.compose import lines_of, settle, to_config
from nfsd3d.config.experiments import Experiment, choices_of
from nfsd3d.config.hydra_compose import compose_with_hydra
from nfsd3d.config.overrides import PATH_KEYS, TEXT_KEYS, check_listed, each_value, parse_override, parse_overrides
from nfsd3d.config.schema import Config, known_keys
from nfsd3d.config.without_effect import settings_without_effect
from nfsd3d.errors import InputError
from nfsd3d.jobs import table
from nfsd3d.jobs.controller import ENGINE, check_engine
from nfsd3d.jobs.engines.base import EngineSettings, check_run, engine_settings
from nfsd3d.jobs.manifest import NAME, Manifest, job_count, job_folder, new_manifest, read, resume_command, write
from nfsd3d.jobs.perform import Command
from nfsd3d.runs import directory, preflight
from nfsd3d.runs.lock import live_owner
from nfsd3d.settings.paths import user_path

_MOST_JOBS = 10_000
_TRIED = 16
"""Combinations that are composed for a value, as long as none is valid."""
_OF_NO_OTHERS = frozenset({"prompt", "negative_prompt", "seed"})
"""Settings whose values do not decide whether others have an effect."""


def multirun(experiment: Experiment, arguments: Sequence[str], command: Command) -> int:
    """Runs every combination of ``arguments`` by ``command`` in a directory of its own; 0 if all are done, else 1.

    With the ``run_dir`` of an unfinished sweep of the same jobs, these are gone on with. With ``dry_run=true`` a table
    of the jobs is printed, and nothing is written.

    Raises:
        InputError: a value that no job could use, an engine that cannot be used, or a directory that cannot be made.
        Interrupted: a signal ended it.
    """
    parsed = parse_overrides([prompts_of_file(argument) for argument in arguments], sweep=True)
    folders = [override for override in parsed if override.key_or_group == "run_dir"]
    if any(override.is_sweep_override() for override in folders):
        raise InputError("run_dir: a sweep has one directory, and makes one for each run inside it")
    given = folders[-1].value() if folders else None
    if given == "":
        raise InputError("run_dir=: must not be empty")
    overrides = [override for override in parsed if override.key_or_group != "run_dir"]
    lines, choices = settle(experiment, overrides)
    sweep = Sweep.of(experiment, list(map(parse_override, lines)))
    if sweep.engine.machine is not None:
        lines, choices = settle(experiment, overrides, sweep.engine.machine)
        sweep = Sweep.of(experiment, list(map(parse_override, lines)))
    config = checked(experiment, sweep)
    announce(lines_of(choices))
    if sweep.swept.keys() <= _OF_NO_OTHERS:  # what has no effect in one job has none in any
        announce(settings_without_effect(config, {override.key_or_group for override in overrides}))
    folder = directory.OUTPUTS / experiment.label / "sweep" if given is None else user_path(str(given))
    manifest = _manifest(experiment, sweep, folder)
    if config.dry_run:
        print(table.text_table(manifest, table.rows_of(manifest)))
        count = job_count(len(manifest.jobs))
        print(f"# {count} on engine {sweep.engine.engine}; dry run: nothing was started")
        return 0
    check_engine(sweep.engine)
    place = (folder.parent if given is None else folder).absolute()
    made = [parent for parent in (place, *place.parents) if not os.path.isdir(parent)]
    if given is None:
        manifest = replace(manifest, folder=directory.new_folder(folder.parent, "sweep-"))
    elif os.path.exists(folder / NAME):  # unlike Path.exists, false for a name that is too long
        return _run(_same(manifest, read(folder)), sweep.engine, command)
    directory.claim_folder(manifest.folder)
    try:
        write(manifest)
        return _run(manifest, sweep.engine, command)
    except (InputError, OSError):
        unused = not (manifest.folder / ENGINE).exists() and live_owner(manifest.folder) is None
        if unused:  # no job was given to an engine, and no other controller is about to
            (manifest.folder / NAME).unlink(missing_ok=True)
            for parent in dict.fromkeys((manifest.folder.absolute(), *made)):
                with suppress(OSError):  # it is not empty
                    parent.rmdir()
        raise


def _run(manifest: Manifest, engine: EngineSettings, command: Command) -> int:
    print(f"{job_count(len(manifest.jobs))} in {manifest.folder}", file=sys.stderr)
    return run_and_report(manifest, engine, command)


@dataclass(frozen=True)
class Sweep:
    """The overrides of a sweep's command line: those that all jobs share, and the texts of each that is swept."""

    shared: list[str]
    swept: dict[str, list[str]]
    engine: EngineSettings

    @classmethod
    def of(cls, experiment: Experiment, overrides: Sequence[Override]) -> "Sweep":
        """The sweep of these overrides.

        Raises:
            InputError: values that cannot be listed, no or too many combinations, or a wrong engine.
        """
        for override in overrides:
            check_listed(override)
            if override.is_hydra_override() and override.is_sweep_override():
                raise InputError(f"{override.input_line}: give one value; it counts for the whole sweep")
        first = [next(each_value(override), "") for override in overrides]
        if not any(override.key_or_group == "hydra/launcher" for override in overrides):
            first.append("hydra/launcher=local")
        _, hydras = compose_with_hydra(experiment, list(filter(None, first)), sweep=True)
        params = [parse_override(f"{key}={value}") for key, value in (hydras.sweeper.get("params") or {}).items()]
        merged = {override.get_key_element(): override for override in [*params, *overrides]}.values()
        ours = [override for override in merged if not override.is_hydra_override()]
        swept = {
            str(override.key_or_group): list(itertools.islice(each_value(override), _MOST_JOBS + 1))
            for override in ours
            if override.is_sweep_override()
        }
        for key, texts in swept.items():
            _check_values(key, texts)
        jobs = math.prod(map(len, swept.values()))
        if not 0 < jobs <= _MOST_JOBS:
            size = "no" if jobs == 0 else f"over {_MOST_JOBS:,}"
            raise InputError(f"a sweep of {size} jobs; give fewer or more values")
        shared = [str(override.input_line) for override in ours if not override.is_sweep_override()]
        return cls(shared, swept, _engine(hydras))

    def jobs(self) -> Iterator[tuple[str, ...]]:
        """The swept overrides of each job."""
        return itertools.product(*self.swept.values())


def _check_values(key: str, overrides: Sequence[str]) -> None:
    """Raises `InputError` for a value that is given twice, or for a key that cannot be swept."""
    if key == "dry_run":
        raise InputError(f"dry_run={','.join(map(shown, overrides))}: give one value; it counts for the whole sweep")
    for override, count in Counter(overrides).most_common(1):
        if count > 1:
            raise InputError(f"{key}={shown(override)}: given {count} times; give it once, each value is a job")


def _engine(hydras: DictConfig) -> EngineSettings:
    """The engine that ``hydra/launcher`` chooses; Hydra's own basic launcher means one job at a time.

    Raises:
        InputError: another launcher, or a wrong setting.
    """
    name = hydras.runtime.choices["hydra/launcher"]
    if name == "basic":
        return EngineSettings()
    container = OmegaConf.to_container(hydras.launcher, resolve=True)
    assert isinstance(container, dict)
    values = {str(key): value for key, value in container.items()}
    if "_target_" in values:
        names = "local, joblib, submitit_local, submitit_slurm, ray"
        raise InputError(f"hydra/launcher={name}: not one of this program's; choose hydra/launcher={names}")
    known = settings_of(name)
    if unknown := [key for key in values if key not in known]:
        raise InputError(f"hydra.launcher.{unknown[0]}: engine {name} has no such setting; it has {', '.join(known)}")
    return engine_settings(values, "hydra.launcher.")


def checked(experiment: Experiment, sweep: Sweep) -> Config:
    """Checks each value once: beside the first valid combination of the others, or where it does not fit, beside more.

    Returns the configuration of the first valid job.

    Raises:
        InputError: no job is valid, or a value that fits none of the combinations that were tried.
    """
    base, config = _first_valid(experiment, sweep, itertools.islice(sweep.jobs(), _TRIED))
    values = config.to_dict()
    for index, (key, overrides) in enumerate(sweep.swept.items()):
        for override in overrides:
            if override == base[index]:
                continue
            job = (*base[:index], override, *base[index + 1 :])
            try:
                if choices_of(key, experiment.path.parent) or key not in known_keys():
                    _composed(experiment, sweep, job)
                else:
                    _check_config(Config.from_dict(_with_value(values, key, parse_override(override).value())), sweep)
            except InputError:
                others = [[override] if place == index else texts for place, texts in enumerate(sweep.swept.values())]
                _first_valid(experiment, sweep, itertools.islice(itertools.product(*others), _TRIED))
    return config


def _first_valid(
    experiment: Experiment, sweep: Sweep, jobs: Iterable[tuple[str, ...]]
) -> tuple[tuple[str, ...], Config]:
    """The first valid one of ``jobs``, with its configuration; raises the first one's error if there is none."""
    errors = []
    for job in jobs:
        try:
            return job, _composed(experiment, sweep, job)
        except InputError as error:
            errors.append(error)
    raise errors[0]


def _composed(experiment: Experiment, sweep: Sweep, job: tuple[str, ...]) -> Config:
    config = to_config(compose_with_hydra(experiment, [*sweep.shared, *job])[0])
    _check_config(config, sweep)
    return config


def _check_config(config: Config, sweep: Sweep) -> None:
    check_run(config, sweep.engine)
    preflight.check(config, elsewhere=sweep.engine.elsewhere)


def _with_value(values: Mapping[str, object], key: str, value: object) -> dict[str, object]:
    """Nested ``values`` with the one at a dotted key replaced."""
    name, _, rest = key.partition(".")
    inner = values.get(name)
    return {**values, name: _with_value(inner, rest, value) if rest and isinstance(inner, Mapping) else value}


def _manifest(experiment: Experiment, sweep: Sweep, folder: Path) -> Manifest:
    """The sweep's jobs in ``folder``."""
    label = str(experiment.path.absolute())
    allowed = ["--allow-env"] * experiment.allow_env
    columns = list(sweep.swept)
    jobs = []
    for number, job in enumerate(sweep.jobs()):
        values = {key: shown(override) for key, override in zip(columns, job, strict=True)}
        jobs.append((job_folder(number, values), list(map(as_given, job)), values))
    shared = ["--config", label, *allowed, *map(as_given, sweep.shared)]
    return new_manifest(folder, "sweep", shared, columns, jobs)


@lru_cache(maxsize=_MOST_JOBS)  # many jobs share a value
def shown(override: str) -> str:
    """The value of an override as a person writes it."""
    value = parse_override(override).value()
    if isinstance(value, str):
        return str(OmegaConf.create({"value": value})["value"])  # without the escapes of interpolations
    return override.partition("=")[2] if not isinstance(value, bool) else str(value).lower()


@lru_cache(maxsize=_MOST_JOBS)
def as_given(override: str) -> str:
    """An override as the command line of one run has it: the whole text after ``prompt=`` and ``run_dir=`` is taken."""
    key = str(parse_override(override).key_or_group)
    free = key in (*TEXT_KEYS, *PATH_KEYS) and not override.endswith("=null")
    return f"{key}={shown(override)}" if free else override


def _same(manifest: Manifest, there: Manifest) -> Manifest:
    """The manifest that is ``there`` already, which has the same jobs.

    Raises:
        InputError: it has others.
    """
    if not there.same_jobs(manifest):
        folder = manifest.folder
        raise InputError(f"run_dir={folder}: holds a sweep of other jobs; choose another, or: {resume_command(folder)}")
    return there
