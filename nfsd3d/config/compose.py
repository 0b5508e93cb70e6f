"""Composes an experiment's YAML and ``key=value`` overrides with Hydra into a validated `Config`.

Torch is not imported, so that a wrong setting fails at once.
"""

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import hydra
import yaml
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nfsd3d.config import hardware
from nfsd3d.config.experiments import Experiment, choices_of, config_root, find_experiment, one_line
from nfsd3d.config.hardware import Choice
from nfsd3d.config.overrides import first_value, group_values, parse_overrides
from nfsd3d.config.plugin_choices import offer, outside_names
from nfsd3d.config.recipes import AUTO_GROUPS, KIND_GROUPS
from nfsd3d.config.schema import Config, known_keys
from nfsd3d.errors import InputError, did_you_mean

_HYDRAS = ("hydra.", "hydra/")
"""Beginnings of the keys of Hydra's own settings, such as its launcher."""


@dataclass(frozen=True)
class Composition:
    """A validated configuration, and the choices made for ``auto``."""

    config: Config
    choices: Mapping[str, Choice]


def compose(name_or_path: str | Path = "nfsd", overrides: Sequence[str] = ()) -> Config:
    """The configuration of an experiment with ``key=value`` overrides, as on the command line without ``-m``.

    The whole value after ``prompt=`` is one prompt, whatever it contains; ``auto`` choices are made for this machine.

    Raises:
        InputError: naming the setting, the value and the remedy.
    """
    return compose_experiment(find_experiment(name_or_path), overrides).config


def compose_experiment(experiment: Experiment, overrides: Sequence[str]) -> Composition:
    """As `compose`, with the choices made for ``auto``.

    Raises:
        InputError: naming the setting, the value and the remedy.
    """
    parsed = parse_overrides(overrides)
    for override in parsed:
        if override.is_sweep_override():
            raise InputError(f"{override.input_line}: several values are a sweep; add -m, or quote the value")
    lines, choices = settle(experiment, parsed)
    return Composition(to_config(_compose_with_hydra(experiment, lines)), choices)


def composed_yaml(experiment: Experiment, overrides: Sequence[str], part: str) -> str:
    """The unvalidated composition of Hydra as YAML: the ``part`` ``job`` (the settings), ``hydra`` (Hydra's) or
    ``all``.

    Raises:
        InputError: naming the setting, the value and the remedy.
    """
    lines, _ = settle(experiment, parse_overrides(overrides))
    values = _compose_with_hydra(experiment, lines, with_hydra=part != "job")
    return str(OmegaConf.to_yaml(OmegaConf.masked_copy(values, ["hydra"]) if part == "hydra" else values))


def load_run_config(run_dir: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of an existing run with value overrides; its ``run_dir`` is that directory.

    Raises:
        InputError: no run directory, a damaged ``config.yaml``, or an override that does not fit.
    """
    path = Path(run_dir).expanduser()
    if not path.is_dir():
        raise InputError(f"{run_dir}: no such run directory; give one that holds a config.yaml")
    if not (path / "config.yaml").is_file():
        raise InputError(f"{run_dir}: not a run directory, it has no config.yaml")
    config = compose_experiment(find_experiment(path / "config.yaml"), overrides).config
    if config.run_dir is not None:
        raise InputError(f"run_dir={config.run_dir}: an existing run stays in {run_dir}; leave run_dir out")
    return config.replace(run_dir=str(path.resolve()))


def to_config(values: DictConfig) -> Config:
    """The validated configuration of a composition by Hydra.

    Raises:
        InputError: missing or wrong values.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(values))
        plain = OmegaConf.to_container(values, resolve=True)
    except OmegaConfBaseException as error:
        message = str(error).splitlines()[0]
        raise InputError(f"{error.full_key}: {message}; write \\${{ for a literal ${{") from error
    if "prompt" in missing:
        raise InputError('prompt is missing: say what to make, for example prompt="a red mushroom"')
    if missing:
        raise InputError(f"{', '.join(missing)}: missing; set {'them' if len(missing) > 1 else 'it'}")
    assert isinstance(plain, dict)  # a DictConfig's container
    for group in KIND_GROUPS:
        if isinstance(plain.get(group), dict):
            plain[group].pop("kind", None)
    return Config.from_dict({str(key): value for key, value in plain.items()})


def settle(experiment: Experiment, overrides: Sequence[Override]) -> tuple[list[str], dict[str, Choice]]:
    """The overrides as text for Hydra, with every ``auto`` replaced, and the choices by group.

    Raises:
        InputError: an unknown key or choice, or a group override of a resolved configuration.
    """
    groups = {str(o.key_or_group): group_values(o) for o in overrides if _chooses_a_group(experiment, o)}
    if experiment.resolved:  # a run's file lacks run_dir, dry_run and newer settings
        values = [o.type == OverrideType.CHANGE and not o.key_or_group.startswith(_HYDRAS) for o in overrides]
        return [f"{'++' * value}{o.input_line}" for value, o in zip(values, overrides, strict=True)], {}
    choices = _resolve_auto(experiment, [o for o in overrides if o.key_or_group in groups], groups)
    lines = []
    for override in overrides:
        line = str(override.input_line)
        if choice := choices.get(override.key_or_group):
            chosen = dict.fromkeys(choice.value if v == "auto" else v for v in groups[override.key_or_group])
            line = f"{override.get_key_element()}={','.join(chosen)}"
        lines.append(line)
    return [*lines, *(f"{name}={choice.value}" for name, choice in choices.items() if name not in groups)], choices


def _resolve_auto(
    experiment: Experiment, overrides: Sequence[Override], given: Mapping[str, list[str]]
) -> dict[str, Choice]:
    """The choices for ``machine``, ``backend`` and ``prior`` that are ``auto``; ``overrides`` choose groups only."""
    if all("auto" not in given.get(group, ["auto"]) for group in AUTO_GROUPS):
        return {}
    # Groups only: values may belong to a choice that is not made yet.
    composed = _compose_with_hydra(experiment, [first_value(override) for override in overrides], with_hydra=True)
    chosen = dict(composed.hydra.runtime.choices) | {group: "auto" for group, v in given.items() if "auto" in v}
    given_machine = str(chosen.get("machine", "cpu"))
    machine = hardware.auto_machine() if given_machine == "auto" else Choice(given_machine, "given")
    backend, prior = hardware.auto_backend(machine.value), hardware.auto_prior(machine.value)
    found = {"machine": machine, "backend": backend, "prior": prior}
    return {group: choice for group, choice in found.items() if chosen.get(group) == "auto"}


def _chooses_a_group(experiment: Experiment, override: Override) -> bool:
    """Whether an override with a known key chooses from a group (and not a value)."""
    key = override.key_or_group
    options = ["auto"] * (key in AUTO_GROUPS) + (choices_of(key, experiment.path.parent) if key else [])
    own = key.startswith(("generator.options.", "generator.learning_rate."))  # of a plug-in
    if key.startswith(_HYDRAS) or (not options and (own or key in known_keys())):
        return False
    if not options:
        known = [*known_keys(), *sorted(path.name for path in config_root().iterdir() if path.is_dir())]
        raise InputError(
            f"unknown setting {key}{did_you_mean(key, known)}; see --help, or configs/nfsd.yaml for all of them"
        )
    if experiment.resolved:
        raise InputError(
            f"{override.input_line}: {experiment.path} is fully resolved and takes values only (such as "
            f"train.steps=500); to choose another {key}, start from --config configs/{experiment.label}.yaml"
        )
    if override.type != OverrideType.CHANGE:
        return True
    for value in group_values(override):
        if value not in options and not offer(key, value):
            options = list(dict.fromkeys([*options, *outside_names(key)]))
            raise InputError(
                f"{key}={value}: no such choice{did_you_mean(value, options)}; choose {key}={', '.join(options)}"
            )
    return True


def _compose_with_hydra(experiment: Experiment, overrides: Sequence[str], with_hydra: bool = False) -> DictConfig:
    try:
        with hydra.initialize_config_dir(str(experiment.path.parent), version_base="1.3", job_name="nfsd3d"):
            return hydra.compose(experiment.path.stem, list(overrides), return_hydra_config=with_hydra)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise InputError(_describe_hydra_error(error)) from error


def multirun(experiment: Experiment, overrides: Sequence[str], job: Callable[[DictConfig], None]) -> None:
    """Hydra's multirun of an experiment; ``job`` is called with each composition.

    ``job`` is a function of a module, so that launchers with other processes find it by its name.

    Raises:
        InputError: Hydra or OmegaConf raise an error.
    """
    location = ["--config-path", str(experiment.path.parent), "--config-name", experiment.path.stem]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors are raised; else Hydra exits
    former, sys.argv = sys.argv, ["nfsd3d", *location, "-m", *overrides]
    try:
        hydra.main(version_base="1.3", config_path=None)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_describe_hydra_error(error)) from error
    finally:
        sys.argv = former


def _describe_hydra_error(error: Exception) -> str:
    """Hydra's or OmegaConf's message on one line, with a hint where one is known."""
    cause: BaseException | None = error
    while cause is not None:  # of a resolver, whose errors Hydra replaces by its own
        if isinstance(cause, InputError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    missing = re.search(r"Could not find '((recipe|fast)/[^']+)'", str(error))
    if missing:
        return (
            f"{missing[1]}.yaml: missing; write it beside the experiment file, with the settings for this kind of "
            f"generator and prior; there are {', '.join(choices_of(missing[2]))}"
        )
    refused = re.search(r"Could not override '([^']+)'", str(error))
    if refused:
        key = refused.group(1)
        group, _, name = key.partition(".")
        files = [config_root() / group / f"{choice}.yaml" for choice in choices_of(group)]
        contents = {f"{group}={file.stem}": yaml.safe_load(file.read_text("utf-8")) or {} for file in files}
        having = [choice for choice, content in contents.items() if name in content.get(group, content)]
        return f"{key}: the chosen groups have no such setting" + (f"; {', '.join(having)} has" if having else "")
    return one_line(error)
