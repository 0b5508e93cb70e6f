"""Choices of config groups that have no file of their own: ``auto``, plug-ins, and recipes found by kind.

A recipe (resolution, steps, t range, cameras, regularisers) depends on the generator and on the size of the prior's
latents. One file for each pair would multiply with every prior, so priors that share a latent size share a ``kind``:
``generator/*.yaml`` and ``prior/*.yaml`` name theirs, and ``recipe_of`` in a defaults list joins the two.
"""

from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.default_element import ConfigDefault
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from nfsd3d.config import hardware
from nfsd3d.config.experiments import choices_of
from nfsd3d.distill.methods import TABLE as METHODS
from nfsd3d.errors import InputError
from nfsd3d.generators.plugins import TABLE as GENERATORS
from nfsd3d.plugins.table import Table
from nfsd3d.prior.priors import TABLE as PRIORS

AUTO_GROUPS = ("machine", "backend", "prior")
"""Groups with the choice ``auto``, which is replaced before the configuration is composed."""
KIND_GROUPS = ("generator", "prior")
"""Groups whose YAML files name their ``kind``, by which the recipe is found; it is no setting of a run."""
_TABLES: dict[str, Table] = {"distill": METHODS, "prior": PRIORS, "generator": GENERATORS}
"""Groups with plug-ins."""


def all_choices(group: str) -> list[str]:
    """The choices of a group: the project's files, then plug-ins."""
    return list(dict.fromkeys([*choices_of(group), *(_TABLES[group].names() if group in _TABLES else [])]))


def offer(group: str, name: str) -> bool:
    """Registers the values of the plug-in ``group=name`` with Hydra; returns whether there is such a plug-in.

    Raises:
        InputError: the package that offers it is broken.
    """
    if group not in _TABLES or name not in _TABLES[group]:
        return False
    package = "_global_" if group == "generator" else group
    ConfigStore.instance().store(name, _plugin_values(group, name), group, package)
    return True


def prefer_files(folder: Path) -> None:
    """Withdraws plug-ins that earlier compositions have registered where ``folder`` or the project has such a file."""
    for group in _TABLES:
        registered = ConfigStore.instance().repo.get(group, {})
        for name in choices_of(group, folder):
            registered.pop(f"{name}.yaml", None)


def _plugin_values(group: str, name: str) -> dict[str, object]:
    """The values of a plug-in, as in a YAML file."""
    if group == "distill":
        method = METHODS.find(name)
        return {"method": name, "guidance_scale": method.guidance_scale, "weighting": method.weighting}
    if group == "prior":
        return {"defaults": [PRIORS.find(name).recipe, "_self_"], "name": name}
    row = GENERATORS.find(name)
    settings = {"type": name, "options": dict(row.options), "learning_rate": dict(row.learning_rates)}
    return {"generator": {"kind": "images", **settings}, "train": {"learning_rate": {}}}


def _recipe_of(generator: str, prior: str) -> str:
    """The recipe's name, by the kinds of generator and prior: ``nerf-sd-512``."""
    if prior == "auto":  # while only the choices of a defaults list are wanted
        prior = hardware.auto_prior(hardware.auto_machine().value).value
    return f"{_kind('generator', generator)}-{_kind('prior', prior)}"


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


OmegaConf.register_new_resolver("cpu_precision", lambda: hardware.cpu_precision())
OmegaConf.register_new_resolver("recipe_of", _recipe_of)
for _group in AUTO_GROUPS:
    ConfigStore.instance().store("auto", {}, _group)
