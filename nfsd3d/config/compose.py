"""From an experiment file and ``key=value`` overrides to a validated `Config`, by way of Hydra.

Everything here happens before torch is imported, so that a wrong setting fails at once.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nfsd3d.config import hardware
from nfsd3d.config.hardware import Choice
from nfsd3d.config.overrides import first_values, group_values, parse_override, quote
from nfsd3d.config.renamed import RENAMED, with_current_names
from nfsd3d.config.schema import Config, known_keys
from nfsd3d.errors import InputError, did_you_mean

_AUTO_GROUPS = ("machine", "backend", "prior")
_GROUPS_OF_A_RUN = {"machine", "backend", "distill", "prior", "generator", "cameras", "train", "export"}


def config_root() -> Path:
    """The folder of the project's YAML files, in a checkout as in an installed wheel."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


class _ProjectConfigs(SearchPathPlugin):
    """Lets every experiment file, wherever it lies, name the project's groups and experiments."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Appends the project's folder: what lies beside the experiment file comes first."""
        search_path.append(provider="nfsd3d", path=f"file://{config_root()}")


Plugins.instance().register(_ProjectConfigs)
OmegaConf.register_new_resolver("cpu_precision", lambda: hardware.cpu_precision())


@dataclass(frozen=True)
class Experiment:
    """A primary YAML file: one with a defaults list, or a run's fully ``resolved`` ``config.yaml``.

    ``label`` names it in paths: the file's stem, or the method of a resolved one.
    """

    path: Path
    resolved: bool
    label: str

    @property
    def name(self) -> str:
        """Hydra's name of it: the file name without ``.yaml``."""
        return self.path.stem

    @property
    def folder(self) -> Path:
        """Its absolute folder."""
        return self.path.parent


@dataclass(frozen=True)
class Composition:
    """A validated configuration, and what each ``auto`` became."""

    config: Config
    choices: Mapping[str, Choice]


def find_experiment(name_or_path: str | Path) -> Experiment:
    """The experiment file that ``nfsd``, ``configs/nfsd.yaml`` or any path means.

    A YAML file at that path, from the current folder, comes first. Else the name, with or without ``configs/`` and
    ``.yaml``, means one of the project's own, so that the documented commands work from any folder.

    Raises:
        InputError: no such file (the nearest ones are named), or not a YAML mapping.
    """
    text = str(name_or_path)
    given = Path(os.path.expanduser(text))
    name = given.relative_to("configs") if given.parts[:1] == ("configs",) else given
    own = config_root() / (name if name.suffix or not name.name else name.with_name(f"{name.name}.yaml"))
    # Not Path.is_file, which raises for what cannot be a file (a name too long, a folder that may not be read).
    found = [path for path in (given, own) if os.path.isfile(path)]
    if not found:
        names = sorted(path.name for path in config_root().glob("*.yaml"))
        near = did_you_mean(Path(text).stem, [Path(name).stem for name in names], ".yaml") if Path(text).name else ""
        raise InputError(
            f"--config {text}: no such file{near}; there are {_listed(f'configs/{name}' for name in names)}"
        )
    # A file called nfsd, such as a folder's own program, does not hide the experiment of that name.
    path = next((path for path in found if path.suffix == ".yaml"), found[0])
    if path.suffix != ".yaml":
        raise InputError(f"--config {text}: not a .yaml file; rename it to {path.stem}.yaml")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--config {text}: cannot be read as YAML: {_one_line(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"--config {text}: holds no settings; begin it with a defaults list such as [nfsd, _self_]")
    if "defaults" in content:
        return Experiment(path.resolve(), resolved=False, label=path.stem)
    method = content["distill"].get("method") if isinstance(content.get("distill"), dict) else None
    if not isinstance(method, str) or not content.keys() >= _GROUPS_OF_A_RUN:
        raise InputError(f"--config {text}: has no defaults list; begin it with defaults: [nfsd, _self_]")
    return Experiment(path.resolve(), resolved=True, label=method)


def compose(name_or_path: str | Path = "nfsd", overrides: Sequence[str] = ()) -> Config:
    """The configuration of an experiment with ``key=value`` overrides, as on the command line without ``-m``.

    The whole value after ``prompt=`` is one prompt, whatever it contains; ``auto`` choices are made for this machine.

    Raises:
        InputError: naming the setting, the value and the remedy.
    """
    return compose_experiment(find_experiment(name_or_path), overrides).config


def compose_experiment(experiment: Experiment, overrides: Sequence[str]) -> Composition:
    """As `compose`, together with what was chosen.

    Raises:
        InputError: naming the setting, the value and the remedy.
    """
    parsed = [parse_override(quote(override)) for override in overrides]
    for override in parsed:
        if override.is_sweep_override():
            raise InputError(f"{override.input_line}: several values are a sweep; add -m, or quote the value")
    choices = resolve_auto(experiment, parsed)
    values = _compose_with_hydra(experiment, override_lines(experiment, parsed, choices))
    return Composition(to_config(values), choices)


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
    """The validated configuration of what Hydra composed.

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
        raise InputError(f"{_listed(missing)}: missing; set {'them' if len(missing) > 1 else 'it'}")
    assert isinstance(plain, dict)  # a DictConfig's container
    return Config.from_dict(with_current_names({str(key): value for key, value in plain.items()}))


def resolve_auto(experiment: Experiment, overrides: Sequence[Override]) -> dict[str, Choice]:
    """What ``machine``, ``backend`` and ``prior`` become where they are ``auto``, by group name.

    Also checks every override's key, and group choices, first.

    Raises:
        InputError: an unknown key or choice, or a group override of a resolved configuration.
    """
    groups = [override for override in overrides if _check_override(experiment, override)]
    settled = {group.key_or_group for group in groups if "auto" not in group_values(group)}
    if experiment.resolved or settled >= set(_AUTO_GROUPS):
        return {}
    # Only the groups matter here: values may belong to a choice that is not made yet.
    composed = _compose_with_hydra(experiment, first_values(groups), with_hydra=True)
    chosen = {group: str(choice) for group, choice in composed.hydra.runtime.choices.items()}
    chosen |= {str(group.key_or_group): "auto" for group in groups if "auto" in group_values(group)}
    choices: dict[str, Choice] = {}
    if chosen.get("machine") == "auto":
        choices["machine"] = hardware.auto_machine()
    machine = choices["machine"].value if "machine" in choices else chosen.get("machine", "cpu")
    if chosen.get("backend") == "auto":
        choices["backend"] = hardware.auto_backend(machine)
    if chosen.get("prior") == "auto":
        choices["prior"] = hardware.auto_prior(machine)
    return choices


def override_lines(experiment: Experiment, overrides: Iterable[Override], choices: Mapping[str, Choice]) -> list[str]:
    """The overrides as text for Hydra, with every ``auto`` replaced by its choice."""
    lines = []
    pending = dict(choices)
    # A run's configuration leaves out run_dir and dry_run, and settings that are newer than it.
    present = OmegaConf.load(experiment.path) if experiment.resolved else None
    for override in overrides:
        line = str(override.input_line)
        if override.key_or_group in choices:
            pending.pop(override.key_or_group, None)
            line = _without_auto(override, choices[override.key_or_group])
        elif present is not None and OmegaConf.select(present, override.key_or_group) is None:
            line = f"++{line.lstrip('+')}"
        lines.append(line)
        if present is not None:  # a run's old spelling of the setting gives way to the new one
            lines += [
                f"~{old}"
                for old, new in RENAMED.items()
                if new == override.key_or_group and OmegaConf.select(present, old, default=present) is not present
            ]
    return [*lines, *(f"{group}={choice.value}" for group, choice in pending.items())]


def _without_auto(override: Override, choice: Choice) -> str:
    chosen = dict.fromkeys(choice.value if value == "auto" else value for value in group_values(override))
    return f"{override.get_key_element()}={','.join(chosen)}"


def _check_override(experiment: Experiment, override: Override) -> bool:
    """Whether an override with a known key chooses from a group (and not a value)."""
    key = override.key_or_group
    if key.startswith(("hydra.", "hydra/")):
        return False
    options = _options(experiment, key)
    if not options and key in known_keys():
        return False
    if not options:
        known = [*known_keys(), *_groups()]
        raise InputError(
            f"unknown setting {key}{did_you_mean(key, known)}; see --help, or configs/nfsd.yaml for all of them"
        )
    if experiment.resolved:
        raise InputError(_group_override_of_run(experiment, override))
    if override.type != OverrideType.CHANGE:
        return True
    for value in group_values(override):
        if value not in options:
            raise InputError(
                f"{key}={value}: no such choice{did_you_mean(value, options)}; choose {key}={_listed(options)}"
            )
    return True


def _group_override_of_run(experiment: Experiment, override: Override) -> str:
    return (
        f"{override.input_line}: {experiment.path} is fully resolved and takes values only (such as train.steps=500); "
        f"to choose another {override.key_or_group}, start from --config configs/{experiment.label}.yaml"
    )


def _groups() -> list[str]:
    return sorted({found.parent.name for found in config_root().glob("*/*.yaml")})


def _options(experiment: Experiment, group: str) -> list[str]:
    """The choices of a group, from the project and beside the experiment file; none if it is not a group."""
    if not re.fullmatch(r"[\w/-]+", group):
        return []
    folders = [experiment.folder / group, config_root() / group]
    return sorted({found.stem for folder in folders for found in folder.glob("*.yaml")})


def _compose_with_hydra(experiment: Experiment, overrides: Sequence[str], with_hydra: bool = False) -> DictConfig:
    try:
        with hydra.initialize_config_dir(str(experiment.folder), version_base="1.3", job_name="nfsd3d"):
            return hydra.compose(experiment.name, list(overrides), return_hydra_config=with_hydra)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise InputError(_describe_hydra_error(error)) from error


def call_hydra(experiment: Experiment, arguments: Sequence[str], job: Callable[[DictConfig], None]) -> None:
    """Hydra's own command line (``--cfg``, ``-m``) on an experiment file; ``job`` is called with each composition.

    ``job`` is a function of a module, so that launchers with other processes find it by its name.

    Raises:
        InputError: what Hydra or OmegaConf refuse.
    """
    location = ["--config-path", str(experiment.folder), "--config-name", experiment.name]
    with _process_sees(["nfsd3d", *location, *arguments]):
        try:
            hydra.main(version_base="1.3", config_path=None)(job)()
        except (HydraException, OmegaConfBaseException) as error:
            raise InputError(_describe_hydra_error(error)) from error


@contextmanager
def _process_sees(argv: list[str]) -> Iterator[None]:
    """Within the block, Hydra finds ``argv`` as the command line and lets its errors through (else it exits)."""
    former_argv, former_mode = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = argv, "1"
    try:
        yield
    finally:
        sys.argv = former_argv
        if former_mode is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = former_mode


def _describe_hydra_error(error: Exception) -> str:
    """Hydra's or OmegaConf's message on one line, with a hint where one is known."""
    refused = re.search(r"Could not override '([^']+)'", str(error))
    if refused:
        key = refused.group(1)
        having = _choices_with(key)
        return f"{key}: the chosen groups have no such setting" + (f"; {_listed(having)} has" if having else "")
    return _one_line(error)


def _choices_with(key: str) -> list[str]:
    """The choices of the project's groups, as ``group=name``, that set a dotted key."""
    group, _, name = key.partition(".")
    files = sorted(config_root().glob(f"{group}/*.yaml")) if re.fullmatch(r"\w+", group) else []
    return [f"{group}={file.stem}" for file in files if name in (yaml.safe_load(file.read_text("utf-8")) or {})]


def _one_line(error: Exception) -> str:
    message = str(error).partition("Config search path")[0]
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join(lines[:3])[:300]


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(str(name) for name in names)
