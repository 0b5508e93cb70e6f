"""Composes experiments with Hydra, and starts its multirun, after checks of what files say to Hydra."""

import os
import sys
from collections.abc import Callable, Sequence
from functools import cache

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nfsd3d.config.experiments import Experiment, config_root
from nfsd3d.config.hydra_errors import describe
from nfsd3d.config.overrides import first_value, parse_override, quoted
from nfsd3d.config.recipes import reading, searched_folder
from nfsd3d.config.trust import check_hydra_value, check_interpolations, leaves
from nfsd3d.config.yaml_files import one_line
from nfsd3d.errors import InputError, RunFailed

HYDRAS = ("hydra.", "hydra/")
"""Beginnings of the keys of Hydra's own settings, such as its launcher."""


def compose_with_hydra(
    experiment: Experiment, overrides: Sequence[str], *, sweep: bool = False
) -> tuple[DictConfig, DictConfig]:
    """An experiment's settings as Hydra composes them, unresolved, and Hydra's own settings.

    ``sweep`` takes the ``hydra`` blocks of files into account.

    Raises:
        InputError: a file or an override cannot be used, or a file says more than it may.
    """
    values = _hydra_compose(experiment, experiment.path.stem, overrides, sweep)
    hydras = values.pop("hydra")
    _check_that_files_leave_hydra_alone(experiment, hydras, overrides)
    check_interpolations(OmegaConf.to_container(values, resolve=False))
    return values, hydras


def _hydra_compose(experiment: Experiment, name: str | None, overrides: Sequence[str], sweep: bool) -> DictConfig:
    try:
        with (
            reading(experiment, sweep=sweep),
            hydra.initialize_config_dir(str(experiment.path.parent), version_base="1.3", job_name="nfsd3d"),
        ):
            composed = hydra.compose(name, list(map(_read_by_us, overrides)), return_hydra_config=True)
    except InputError:
        raise
    except Exception as error:  # assertions, key errors and others, depending on how a file is wrong
        raise InputError(describe(error, overrides)) from error
    OmegaConf.set_struct(composed, False)
    return composed


def _read_by_us(override: str) -> str:
    """``hydra.searchpath=[FOLDER]`` with folders that are read by the rules for files; others as they are."""
    if not override.startswith("hydra.searchpath="):
        return override
    folders = parse_override(override).value()
    if not isinstance(folders, list):
        raise InputError(
            f"{override}: must be a list of folders, such as hydra.searchpath=[{override.partition('=')[2]}]"
        )
    paths = [str(f) if "://" in str(f).removeprefix("file://") else searched_folder(str(f)) for f in folders]
    return f"hydra.searchpath=[{','.join(map(quoted, paths))}]"


def _check_that_files_leave_hydra_alone(experiment: Experiment, hydras: DictConfig, overrides: Sequence[str]) -> None:
    """Raises InputError if Hydra's settings differ from those without the experiment by more than files may change.

    The files have been checked one by one; this also finds what reaches Hydra's settings through a package, a defaults
    list or any other way of Hydra's.
    """
    given = tuple(line for line in overrides if line.lstrip("+~").startswith(HYDRAS))
    choices, values = _hydras_of(hydras)
    expected_choices, expected = _hydras_without_files(given)
    for group in sorted(choices.keys() | expected_choices.keys()):
        if choices.get(group) != expected_choices.get(group):
            line = f"{group}={choices.get(group)}"
            raise InputError(
                f"{experiment.path.name}: {line}: not allowed in a file; give it on the command line, with -m"
            )
    for key, value in values.items():
        if key not in expected or expected[key] != value:
            check_hydra_value(key, value, experiment.path.name)


@cache
def _hydras_without_files(overrides: tuple[str, ...]) -> tuple[dict[str, object], dict[str, object]]:
    experiment = Experiment(config_root() / "nfsd.yaml", resolved=False, label="nfsd")
    return _hydras_of(_hydra_compose(experiment, None, overrides, sweep=False).hydra)


def _hydras_of(hydras: DictConfig) -> tuple[dict[str, object], dict[str, object]]:
    """The choices from Hydra's groups and its settings by dotted key, without what it records of a run."""
    values = OmegaConf.to_container(hydras, resolve=False)
    assert isinstance(values, dict)
    choices = {group: value for group, value in values["runtime"]["choices"].items() if group.startswith("hydra/")}
    recorded = ("runtime.", "overrides.", "job.name", "job.config_name", "job.override_dirname", "searchpath")
    return choices, {key: value for key, value in leaves(values).items() if not key.startswith(recorded)}


def multirun(experiment: Experiment, overrides: Sequence[str], job: Callable[[DictConfig], None]) -> None:
    """Hydra's multirun of an experiment; ``job`` is called with each composition.

    ``job`` is a function of a module, so that launchers with other processes find it by its name.

    Raises:
        InputError: Hydra or OmegaConf raise an error, or a file says more than it may.
        RunFailed: the launcher or the sweeper fails.
    """
    location = ["--config-path", str(experiment.path.parent), "--config-name", experiment.path.stem]
    parsed = [parse_override(line) for line in overrides]
    one_job = [first_value(o) for o in parsed if o.is_discrete_sweep() or not o.is_sweep_override()]
    compose_with_hydra(experiment, one_job, sweep=True)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors are raised; else Hydra exits
    former = sys.argv
    try:
        with reading(experiment, sweep=True):
            sys.argv = ["nfsd3d", *location, "-m", *map(_read_by_us, overrides)]
            hydra.main(version_base="1.3", config_path=None)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(describe(error, overrides)) from error
    except (InputError, RunFailed):
        raise
    except Exception as error:  # of a launcher; the jobs' own errors are theirs
        raise RunFailed(f"the sweep's launcher or sweeper failed: {type(error).__name__}: {one_line(error)}") from error
    finally:
        sys.argv = former
