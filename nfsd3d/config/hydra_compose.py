"""Composition by Hydra, with files and compositions checked because a file may come from a stranger.

`_FileSource` checks each file by itself. Packages and defaults lists can still move a file's values into Hydra's own
settings, so `_Loader` compares these with the settings without any file. It checks the jobs of a sweep too: each is
composed where it runs, and may choose files that no other job chooses.
"""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import PurePath

import hydra
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from nfsd3d.config.choices import prefer_files
from nfsd3d.config.experiments import Experiment, config_root
from nfsd3d.config.hydra_errors import describe
from nfsd3d.config.overrides import parse_override, quoted
from nfsd3d.config.renamed import with_current_names
from nfsd3d.config.trust import Rules, check_file, check_hydra_value, check_interpolations, leaves
from nfsd3d.config.yaml_files import read_text, read_yaml
from nfsd3d.errors import InputError

_ONE_AT_A_TIME = threading.RLock()
_CHOICE = "runtime.choices."
_RECORDED = ("runtime.", "job.config_name", "job.override_dirname", "searchpath")
"""What Hydra's settings record of a composition; the choices from Hydra's own groups among it are checked."""


def compose_with_hydra(
    experiment: Experiment, overrides: Sequence[str], *, sweep: bool = False
) -> tuple[DictConfig, DictConfig]:
    """An experiment's settings as Hydra composes them, unresolved, and Hydra's own settings.

    ``sweep`` takes the ``hydra`` blocks of files into account.

    Raises:
        InputError: a file or an override cannot be used, or a file says more than it may.
    """
    try:
        with _hydra(experiment, sweep):
            values = hydra.compose(experiment.path.stem, list(overrides), return_hydra_config=True)
    except Exception as error:  # assertions, key errors and others, depending on how a file is wrong
        raise InputError(describe(error, overrides)) from error
    OmegaConf.set_struct(values, False)
    return values, values.pop("hydra")


@contextmanager
def _hydra(experiment: Experiment, sweep: bool) -> Iterator[Hydra]:
    """The Hydra of this process within the block: it reads the experiment's folder, then the project's."""
    rules = Rules(experiment.resolved, experiment.allow_env, sweep)
    with _ONE_AT_A_TIME:  # Hydra's state is global, and runs may be started in threads
        running = GlobalHydra.instance()
        former, running.hydra = running.hydra, Hydra("nfsd3d", _Loader(str(experiment.path.parent), rules))
        version.setbase("1.3")
        prefer_files(experiment.path.parent)
        try:
            yield running.hydra
        finally:
            running.hydra = former


def _search_path(folder: str, rules: Rules) -> ConfigSearchPath:
    """Hydra's own files, the folder, then the project's."""
    path = create_config_search_path(_entry(folder, rules))
    path.prepend("nfsd3d", _entry(str(config_root()), rules), anchor="schema")
    return path


def _entry(folder: str, rules: Rules) -> str:
    """A folder of YAML files as an entry of Hydra's search path, read by the rules."""
    given = ",".join(name for name, value in vars(rules).items() if value)
    return f"{_FileSource.scheme()}://{given}:{folder.removeprefix('file://')}"


def _read_by_us(override: str, rules: Rules) -> str:
    """``hydra.searchpath=[FOLDER]`` with folders that are read by the rules; other overrides as they are."""
    if not override.startswith("hydra.searchpath="):
        return override
    folders = parse_override(override).value()
    if not isinstance(folders, list):
        raise InputError(
            f"{override}: must be a list of folders, such as hydra.searchpath=[{override.partition('=')[2]}]"
        )
    paths = [str(f) if "://" in str(f).removeprefix("file://") else _entry(str(f), rules) for f in folders]
    return f"hydra.searchpath=[{','.join(map(quoted, paths))}]"


class _FileSource(FileConfigSource):
    """Reads YAML files of settings, checked by the rules for them, with the current names of renamed settings."""

    def __init__(self, provider: str, path: str) -> None:
        """Takes ``nfsd3d://RULES:FOLDER``, as `_entry` writes it: Hydra makes sources from text."""
        given, _, folder = path.removeprefix(f"{self.scheme()}://").partition(":")
        super().__init__(provider, f"{self.scheme()}://{folder}")
        self.rules = Rules(**{name: name in given.split(",") for name in vars(Rules())})

    @staticmethod
    def scheme() -> str:
        """The prefix of search path entries that are read by this class."""
        return "nfsd3d"

    def is_config(self, config_path: str) -> bool:
        """Whether there is such a file, which may not lie outside of this source's folder.

        Raises:
            InputError: the path leads out of the folder, or is one of Hydra's own.
        """
        parts = PurePath(os.path.normpath(config_path)).parts
        if ".." in parts or os.path.isabs(config_path):
            raise InputError(f"defaults: {config_path}: lies outside of {self.path}; copy the file into that folder")
        found = super().is_config(config_path)
        ours = parts[:2] == ("hydra", "launcher") and os.path.samefile(self.path, config_root())
        if found and parts[0] == "hydra" and not ours:
            raise InputError(
                f"{config_path}.yaml in {self.path}: Hydra's own settings are not read from files; remove it, or "
                "give the values on the command line"
            )
        return found

    def load_config(self, config_path: str) -> ConfigResult:
        """The content of ``config_path`` below this source's folder.

        Raises:
            InputError: not YAML, or more than a file may say.
        """
        path = os.path.join(self.path, self._normalize_file_name(config_path))
        header = ConfigSource._get_header_dict(read_text(path)[:512])
        if "hydra" in str(header.get("package")):
            raise InputError(f"{config_path}.yaml: @package {header['package']}: Hydra's settings are not set by files")
        values = read_yaml(path)
        check_file(values, f"{config_path}.yaml", self.rules)
        if not self.rules.sweep or not values.get("hydra"):
            values.pop("hydra", None)
        group = "" if header.get("package") == "_global_" else config_path.rpartition("/")[0]
        content = OmegaConf.create(with_current_names(values, group))
        return ConfigResult(self.provider, f"{self.scheme()}://{self.path}", content, header)


class _Loader(ConfigLoaderImpl):
    """Checks each composition of Hydra, those of a sweep's jobs among them, in whichever process they run."""

    def __init__(self, folder: str, rules: Rules) -> None:
        super().__init__(_search_path(folder, rules))
        self.rules = rules

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """The composition of a file and overrides.

        Raises:
            InputError: files set more of Hydra's settings than they may, or have too many interpolations.
        """
        overrides = [_read_by_us(line, self.rules) for line in overrides]
        composed = super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        values = OmegaConf.to_container(composed, resolve=False)
        assert isinstance(values, dict)
        given = tuple(line for line in overrides if line.lstrip("+~").startswith(("hydra.", "hydra/")))
        task = [line for line in overrides if line not in given]
        expected = _settings_without_files(given) | {"overrides.task": task}
        found = _settings_of(values.pop("hydra"))
        changed = {key: value for key, value in found.items() if key not in expected or expected[key] != value}
        for key in sorted(changed, key=lambda key: not key.startswith(_CHOICE)):  # a choice changes values, too
            if key.startswith(_CHOICE):
                choice = f"{key.removeprefix(_CHOICE)}={changed[key]}"
                raise InputError(
                    f"{config_name}.yaml: {choice}: not allowed in a file; give it on the command line, with -m"
                )
            check_hydra_value(key, changed[key], f"{config_name}.yaml")
        check_interpolations(values)
        return composed


def _settings_of(hydras: Mapping[str, object]) -> dict[str, object]:
    """Hydra's settings by dotted key, and the choices from its groups, without what it records of a run."""
    own_choices = f"{_CHOICE}hydra/"
    return {k: v for k, v in leaves(hydras).items() if k.startswith(own_choices) or not k.startswith(_RECORDED)}


@cache
def _settings_without_files(overrides: tuple[str, ...]) -> dict[str, object]:
    """`_settings_of` a composition of overrides alone, all of them Hydra's."""
    loader = ConfigLoaderImpl(_search_path(str(config_root()), Rules()))
    composed = loader.load_configuration(None, list(overrides), RunMode.RUN)
    hydras = OmegaConf.to_container(composed.hydra, resolve=False)
    assert isinstance(hydras, dict)
    return _settings_of({str(key): value for key, value in hydras.items()})


Plugins.instance().register(_FileSource)
