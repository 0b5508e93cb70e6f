"""Composes an experiment's YAML and ``key=value`` overrides with Hydra into a validated `Config`.

A command line passes `parse_overrides` (old names, quotes, Hydra's grammar), `settle` (known keys and choices, and
``auto``), `compose_with_hydra` (files and recipes, and what files may say) and `to_config` (types and values). A sweep
passes the same functions, the last two for each job. Torch is not imported, so that a wrong setting fails at once.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nfsd3d.config import hardware
from nfsd3d.config.choices import AUTO_GROUPS, KIND_GROUPS, all_choices, offer
from nfsd3d.config.experiments import Experiment, choices_of, config_root, find_experiment
from nfsd3d.config.hardware import Choice
from nfsd3d.config.hydra_compose import compose_with_hydra
from nfsd3d.config.overrides import check_listed, each_value, group_values, parse_overrides
from nfsd3d.config.renamed import RENAMED
from nfsd3d.config.schema import Config, known_keys, takes_list
from nfsd3d.config.without_effect import settings_without_effect
from nfsd3d.errors import InputError, did_you_mean
from nfsd3d.settings.paths import user_path


@dataclass(frozen=True)
class Composition:
    """A validated configuration, the choices made for ``auto``, and a line for each given setting without effect.

    Each run of a sweep has the lines in its log; a resumed run does not print them again.
    """

    config: Config
    choices: Mapping[str, Choice]
    without_effect: Sequence[str]

    @property
    def notes(self) -> list[str]:
        """What a person is told: a line for each choice and for each setting without effect."""
        return [*lines_of(self.choices), *self.without_effect]


def lines_of(choices: Mapping[str, Choice]) -> list[str]:
    """A line for each choice that was made for ``auto``, with its reason."""
    return [f"{group}={choice.value} (auto: {choice.reason})" for group, choice in choices.items()]


def compose(name_or_path: str | Path = "nfsd", overrides: Sequence[str] = (), machine: Choice | None = None) -> Config:
    """The configuration of an experiment with ``key=value`` overrides, as on the command line without ``-m``.

    The whole value after ``prompt=`` is one prompt, whatever it contains; ``auto`` choices are made for this machine,
    or for ``machine``.

    Raises:
        InputError: naming the setting, the value and the remedy.
    """
    return compose_experiment(find_experiment(name_or_path), overrides, machine).config


def compose_experiment(experiment: Experiment, overrides: Sequence[str], machine: Choice | None = None) -> Composition:
    """As `compose`, with what a person is told about it.

    Raises:
        InputError: naming the setting, the value and the remedy.
    """
    parsed = parse_overrides(overrides)
    for override in parsed:
        if override.key_or_group.startswith(_OF_SWEEPS):
            raise InputError(f"{override.input_line}: is for a sweep; add -m, or leave it out")
        check_listed(override)
        if override.is_sweep_override():
            key, _, values = str(override.input_line).partition("=")
            raise InputError(
                f"{key}={values}: several values are a sweep; add -m"
                + (f", or write {key}=[{values}] for a list" if takes_list(key) else "")
            )
    lines, choices = settle(experiment, parsed, machine)
    config = to_config(compose_with_hydra(experiment, lines)[0])
    return Composition(config, choices, settings_without_effect(config, {override.key_or_group for override in parsed}))


def composed_yaml(experiment: Experiment, overrides: Sequence[str], part: str) -> str:
    """The unvalidated composition of Hydra as YAML: the ``part`` ``job`` (the settings), ``hydra`` (Hydra's) or
    ``all``.

    Raises:
        InputError: naming the setting, the value and the remedy.
    """
    lines, _ = settle(experiment, parse_overrides(overrides))
    settings, hydras = compose_with_hydra(experiment, lines)
    shown = {"job": settings, "hydra": {"hydra": hydras}, "all": OmegaConf.merge(settings, {"hydra": hydras})}
    return str(OmegaConf.to_yaml(shown[part]))


def load_run_config(run_dir: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of an existing run with value overrides; its ``run_dir`` is that directory.

    Raises:
        InputError: no run directory, a damaged ``config.yaml``, or an override that does not fit.
    """
    path = user_path(run_dir)
    # Not Path.is_dir, which raises for impossible paths (a name too long, a folder without read permission).
    if not os.path.isdir(path):
        raise InputError(f"{run_dir}: no such run directory; give one that holds a config.yaml")
    if not os.path.isfile(path / "config.yaml"):
        if os.path.isfile(path / "manifest.jsonl"):
            raise InputError(
                f"{run_dir}: holds the runs of a sweep; name one of them, or nfsd3d sweep resume {run_dir}"
            )
        raise InputError(f"{run_dir}: not a run directory, it has no config.yaml")
    experiment = find_experiment(path / "config.yaml")
    if not experiment.resolved:
        raise InputError(f"{path / 'config.yaml'}: has a defaults list, which a run's own file never has; remove it")
    config = compose_experiment(experiment, overrides).config
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
    except RecursionError as error:
        raise InputError("interpolations (${...}) refer to each other in a circle; write one value out") from error
    if "prompt" in missing:
        raise InputError('prompt is missing: say what to make, for example prompt="a red mushroom"')
    if missing:
        raise InputError(f"{', '.join(missing)}: missing; set {'them' if len(missing) > 1 else 'it'}")
    assert isinstance(plain, dict)  # a DictConfig's container
    for group in KIND_GROUPS:
        if isinstance(plain.get(group), dict):
            plain[group].pop("kind", None)
    return Config.from_dict({str(key): value for key, value in plain.items()})


def settle(
    experiment: Experiment, overrides: Sequence[Override], machine: Choice | None = None
) -> tuple[list[str], dict[str, Choice]]:
    """The overrides as text for Hydra, with every ``auto`` replaced, and the choices by group.

    ``machine`` is what ``machine=auto`` means where the run is for another machine (None: this one).

    Raises:
        InputError: an unknown key or choice, or a group override of a resolved configuration.
    """
    groups = {str(o.key_or_group): group_values(o) for o in overrides if _chooses_a_group(experiment, o)}
    if experiment.resolved:  # a run's file lacks run_dir, dry_run and newer settings
        return [f"{_force(override)}{override.input_line}" for override in overrides], {}
    choices = _resolve_auto(experiment, [o for o in overrides if o.key_or_group in groups], groups, machine)
    lines = []
    for override in overrides:
        line = str(override.input_line)
        if choice := choices.get(override.key_or_group):
            chosen = dict.fromkeys(choice.value if v == "auto" else v for v in groups[override.key_or_group])
            line = f"{override.get_key_element()}={','.join(chosen)}"
        lines.append(line)
    return [*lines, *(f"{name}={choice.value}" for name, choice in choices.items() if name not in groups)], choices


def _force(override: Override) -> str:
    """``++``, which sets a value whether or not it is there, for the value of a setting without a sign."""
    return "++" * (override.type == OverrideType.CHANGE and not override.is_hydra_override())


def _resolve_auto(
    experiment: Experiment, overrides: Sequence[Override], given: Mapping[str, list[str]], auto: Choice | None
) -> dict[str, Choice]:
    """The choices for ``machine``, ``backend`` and ``prior`` that are ``auto``; ``overrides`` choose groups only."""
    if all("auto" not in given.get(group, ["auto"]) for group in AUTO_GROUPS):
        return {}
    # Groups only: values may belong to a choice that is not made yet.
    _, hydras = compose_with_hydra(experiment, [next(each_value(override)) for override in overrides])
    chosen = dict(hydras.runtime.choices) | {group: "auto" for group, v in given.items() if "auto" in v}
    given_machine = str(chosen.get("machine", "cpu"))
    machine = auto or hardware.auto_machine() if given_machine == "auto" else Choice(given_machine, "given")
    backend, prior = hardware.auto_backend(machine.value), hardware.auto_prior(machine.value)
    found = {"machine": machine, "backend": backend, "prior": prior}
    return {group: choice for group, choice in found.items() if chosen.get(group) == "auto"}


def _chooses_a_group(experiment: Experiment, override: Override) -> bool:
    """Whether an override with a known key chooses from a group (and not a value)."""
    key, line = override.key_or_group, override.input_line
    if override.is_hydra_override():
        _check_hydras(override)
        return False
    options = ["auto"] * (key in AUTO_GROUPS) + (choices_of(key, experiment.path.parent) if key else [])
    own = key.startswith(("generator.options.", "generator.learning_rate."))  # of a plug-in
    if not options and (own or key in known_keys()):
        return False
    if not options:
        raise InputError(_unknown(key))
    if experiment.resolved:
        raise InputError(
            f"{line}: {experiment.path} is fully resolved and takes values only (such as "
            f"train.steps=500); to choose another {key}, start from --config configs/{experiment.label}.yaml"
        )
    if override.type == OverrideType.DEL and key in known_keys():
        raise InputError(f"{line}: a run needs it; choose {key}={', '.join(options)}")
    for value in group_values(override) if override.type == OverrideType.CHANGE else []:
        if value not in options and not offer(key, value):
            options = list(dict.fromkeys([*options, *all_choices(key)]))
            hint = did_you_mean(value, options)
            raise InputError(f"{key}={value}: no such choice{hint}; choose {key}={', '.join(options)}")
    return True


def _unknown(key: str) -> str:
    """The message about a key that is no setting."""
    known = [*known_keys(), *sorted(path.name for path in config_root().iterdir() if path.is_dir())]
    whole, _, last = key.rpartition(".")
    if last.isdigit() and whole in known:
        return f"{key}: elements of a list cannot be set one by one; give the whole list, {whole}=[...]"
    if whole in known_keys() and not any(name.startswith(f"{whole}.") for name in known):
        return f"unknown setting {key}: {whole} has one value and no parts; write {whole}=..."
    hint = did_you_mean(key, [*known, *RENAMED])
    for old, new in RENAMED.items():
        hint = hint.replace(old, new)
    return f"unknown setting {key}{hint}; see --help, or configs/nfsd.yaml for all of them"


_OF_SWEEPS = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper.params")
"""Hydra's settings that this program reads, all for sweeps; besides, compositions read ``hydra.searchpath``."""


def _check_hydras(override: Override) -> None:
    """Raises InputError for a setting of Hydra's without an effect here, or a launcher that is no name."""
    key, line = override.key_or_group, override.input_line
    if key in ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"):
        raise InputError(f"{line}: has no effect; choose the directory with run_dir=PATH")
    if not key.startswith((*_OF_SWEEPS, "hydra.searchpath")):
        raise InputError(f"{line}: has no effect, Hydra only composes the settings; leave it out")
    if key.startswith("hydra/") and (override.type == OverrideType.DEL or not isinstance(override.value(), str)):
        raise InputError(f"{line}: must be a name, such as hydra/launcher=local")
    if key == "hydra/sweeper" and override.value() != "basic":
        raise InputError(
            f"{line}: a sweep runs all combinations of the listed values; leave it out, or see: nfsd3d tune --help"
        )
