"""Hydra extensions: search path, old names of settings, ``auto`` choices, and recipes by kind.

A recipe (resolution, steps, t range, cameras, regularisers) depends on the generator and on the size of the prior's
latents. One file for each pair would multiply with every prior, so priors that share a latent size share a ``kind``:
``generator/*.yaml`` and ``prior/*.yaml`` name theirs, and ``recipe_of`` in a defaults list joins the two.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import PurePath

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import ConfigDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from nfsd3d.config import hardware
from nfsd3d.config.experiments import Experiment, choices_of, config_root
from nfsd3d.config.renamed import with_current_names
from nfsd3d.config.trust import Rules, check_file
from nfsd3d.config.yaml_files import read_text, read_yaml
from nfsd3d.errors import InputError

AUTO_GROUPS = ("machine", "backend", "prior")
"""Groups with the choice ``auto``, which has no file: ``auto`` is replaced before the configuration is composed."""
KIND_GROUPS = ("generator", "prior")
"""Groups whose YAML files name their ``kind``, by which the recipe is found; it is no setting of a run."""


class _YamlSource(FileConfigSource):
    """Reads YAML files of settings, checked by the rules for them, with the current names of renamed settings."""

    def __init__(self, provider: str, path: str) -> None:
        """Takes ``nfsd3d://RULES:FOLDER``, as `_ProjectConfigs` writes it: other processes make sources from it."""
        rules, _, folder = path.removeprefix(f"{self.scheme()}://").partition(":")
        super().__init__(provider, f"{self.scheme()}://{folder}")
        self.rules = Rules(resolved="resolved" in rules, allow_env="env" in rules)
        self.keep_hydra = "sweep" in rules

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
        if found and parts[0] == "hydra":
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
        if not self.keep_hydra or not values.get("hydra"):
            values.pop("hydra", None)
        group = "" if header.get("package") == "_global_" else config_path.rpartition("/")[0]
        content = OmegaConf.create(with_current_names(values, group))
        return ConfigResult(
            config=content, path=f"{self.scheme()}://{self.path}", provider=self.provider, header=header
        )


class _ProjectConfigs(SearchPathPlugin):
    """Makes the project's groups and experiments available to experiment files in any folder."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Appends the project's folder: files beside the experiment file come first.

        Hydra also asks on behalf of other programs in this process, whose search path stays as it is.
        """
        rules = _RULES.get()
        if rules is None:
            return
        for element in search_path.get_path():
            if element.provider == "main":
                element.path = searched_folder(element.path, rules)
        search_path.append(provider="nfsd3d", path=searched_folder(str(config_root()), rules))


_RULES: ContextVar[str | None] = ContextVar("rules", default=None)


def searched_folder(folder: str, rules: str | None = None) -> str:
    """A folder of YAML files as an entry of Hydra's search path, read by the rules of `reading`."""
    return f"{_YamlSource.scheme()}://{_RULES.get() if rules is None else rules}:{folder.removeprefix('file://')}"


@contextmanager
def reading(experiment: Experiment, *, sweep: bool = False) -> Iterator[None]:
    """Hydra reads the files of this experiment within the block; their ``hydra`` blocks count in a sweep only."""
    rules = {"resolved": experiment.resolved, "env": experiment.allow_env, "sweep": sweep}
    token = _RULES.set(",".join(name for name, given in rules.items() if given))
    try:
        yield
    finally:
        _RULES.reset(token)


def _kind(group: str, name: str) -> str:
    """The ``kind`` that ``group/name.yaml`` names, or inherits from the last file of its defaults list.

    Raises:
        InputError: it names none.
    """
    loaded = GlobalHydra.instance().config_loader().repository.load_config(f"{group}/{name}")  # type: ignore[attr-defined]
    if loaded is None or not isinstance(loaded.config, DictConfig):
        raise InputError(f"{group}={name}: no such choice; choose {group}={', '.join(choices_of(group))}")
    kind = loaded.config.get(group, loaded.config).get("kind")  # a file may have the package _global_
    if kind is not None:
        return str(kind)
    bases = [base.path for base in loaded.defaults_list or [] if isinstance(base, ConfigDefault) and not base.is_self()]
    if not bases:
        raise InputError(
            f"{group}/{name}.yaml: names no kind, by which its recipe is found; add a line such as "
            f"kind: {_kind(group, choices_of(group)[-1])}; there are recipe/{', '.join(choices_of('recipe'))}"
        )
    return _kind(group, str(bases[-1]))


def _recipe_of(generator: str, prior: str) -> str:
    """The recipe's name, by the kinds of generator and prior: ``nerf-sd-512``."""
    if prior == "auto":  # while only the choices of a defaults list are wanted
        prior = hardware.auto_prior(hardware.auto_machine().value).value
    return f"{_kind('generator', generator)}-{_kind('prior', prior)}"


Plugins.instance().register(_YamlSource)
Plugins.instance().register(_ProjectConfigs)
OmegaConf.register_new_resolver("cpu_precision", lambda: hardware.cpu_precision())
OmegaConf.register_new_resolver("recipe_of", _recipe_of)
for _group in AUTO_GROUPS:
    ConfigStore.instance().store("auto", {}, _group)
