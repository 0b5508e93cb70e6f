"""Values of ``distill=NAME``, ``prior=NAME`` and ``generator=NAME`` for plug-ins, which have no YAML file."""

from hydra.core.config_store import ConfigStore

from nfsd3d.distill.methods import TABLE as METHODS
from nfsd3d.generators.plugins import TABLE as GENERATORS
from nfsd3d.plugins.table import Table
from nfsd3d.prior.priors import TABLE as PRIORS

_TABLES: dict[str, Table] = {"distill": METHODS, "prior": PRIORS, "generator": GENERATORS}


def _values(group: str, name: str) -> dict[str, object]:
    """The values of the choice, as in a YAML file."""
    if group == "distill":
        method = METHODS.find(name)
        return {"method": name, "guidance_scale": method.guidance_scale, "weighting": method.weighting}
    if group == "prior":
        return {"defaults": [PRIORS.find(name).recipe, "_self_"], "name": name}
    row = GENERATORS.find(name)
    settings = {"type": name, "options": dict(row.options), "learning_rate": dict(row.learning_rates)}
    return {"generator": {"kind": "images", **settings}, "train": {"learning_rate": {}}}


def outside_names(group: str) -> list[str]:
    """The names of a group's plug-ins, which have no YAML file."""
    return _TABLES[group].names() if group in _TABLES else []


def offer(group: str, name: str) -> bool:
    """Registers the values of the plug-in ``group=name`` with Hydra; returns whether there is such a plug-in.

    Raises:
        InputError: the package that offers it is broken.
    """
    if group not in _TABLES or name not in _TABLES[group]:
        return False
    package = "_global_" if group == "generator" else group
    ConfigStore.instance().store(name, _values(group, name), group, package)
    return True
