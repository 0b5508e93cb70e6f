"""Hydra extensions: search path, old names of settings, ``auto`` choices, and recipes by kind.

A recipe (resolution, steps, t range, cameras, regularisers) depends on the generator and on the size of the prior's
latents. One file for each pair would multiply with every prior, so priors that share a latent size share a ``kind``:
``generator/*.yaml`` and ``prior/*.yaml`` name theirs, and ``recipe_of`` in a defaults list joins the two.
"""

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import ConfigDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from nfsd3d.config import hardware
from nfsd3d.config.experiments import choices_of, config_root
from nfsd3d.config.renamed import with_current_names
from nfsd3d.errors import InputError

AUTO_GROUPS = ("machine", "backend", "prior")
"""Groups with the choice ``auto``, which has no file: ``auto`` is replaced before the configuration is composed."""
KIND_GROUPS = ("generator", "prior")
"""Groups whose YAML files name their ``kind``, by which the recipe is found; it is no setting of a run."""


class _YamlSource(FileConfigSource):
    """Reads YAML files as Hydra does, with the current names of renamed settings."""

    @staticmethod
    def scheme() -> str:
        """The prefix of search path entries that are read by this class."""
        return "nfsd3d"

    def load_config(self, config_path: str) -> ConfigResult:
        """The content of ``config_path`` below this source's folder."""
        result = super().load_config(config_path)
        if isinstance(result.config, DictConfig):
            group = "" if result.header.get("package") == "_global_" else config_path.rpartition("/")[0]
            content = OmegaConf.to_container(result.config)
            assert isinstance(content, dict)  # a DictConfig's container
            result.config = OmegaConf.create(with_current_names({str(k): v for k, v in content.items()}, group))
        return result


class _ProjectConfigs(SearchPathPlugin):
    """Makes the project's groups and experiments available to experiment files in any folder."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Appends the project's folder: files beside the experiment file come first."""
        for element in search_path.get_path():
            if element.provider == "main":
                element.path = f"{_YamlSource.scheme()}://{element.path.removeprefix('file://')}"
        search_path.append(provider="nfsd3d", path=f"{_YamlSource.scheme()}://{config_root()}")


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
