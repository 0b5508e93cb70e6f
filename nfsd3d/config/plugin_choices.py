"""Values of ``distill=NAME``, ``prior=NAME`` and ``generator=NAME`` for plug-ins, which have no YAML file."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from hydra.core.config_store import ConfigStore

from nfsd3d.distill.methods import TABLE as METHODS
from nfsd3d.generators.plugins import TABLE as GENERATORS
from nfsd3d.prior.priors import TABLE as PRIORS


def _distill(name: str) -> Mapping[str, object]:
    method = METHODS.find(name)
    return {"method": name, "guidance_scale": method.guidance_scale, "weighting": method.weighting}


def _prior(name: str) -> Mapping[str, object]:
    return {"defaults": [PRIORS.find(name).recipe, "_self_"], "name": name}


def _generator(name: str) -> Mapping[str, object]:
    row = GENERATORS.find(name)
    return {"type": name, "options": dict(row.options), "learning_rate": dict(row.learning_rates)}


_VALUES: dict[str, tuple[Callable[[], list[str]], Callable[[str], Mapping[str, object]]]] = {
    "distill": (METHODS.names, _distill),
    "prior": (PRIORS.names, _prior),
    "generator": (GENERATORS.names, _generator),
}


def outside_names(group: str) -> list[str]:
    """The names that a group's choice may have besides those of YAML files."""
    return _VALUES[group][0]() if group in _VALUES else []


def offer(group: str, name: str, root: Path) -> bool:
    """Gives Hydra the values of the choice ``group=name``; whether there is such a choice from outside.

    Raises:
        InputError: the package that offers it is broken.
    """
    if name not in outside_names(group):
        return False
    store = ConfigStore.instance()
    store.store(name, dict(_VALUES[group][1](name)), group)
    recipes: Iterable[Path] = ()  # of another prior or generator
    if group == "prior":
        recipes = root.glob(f"*/*/{PRIORS.find(name).recipe}.yaml")
    elif group == "generator":
        recipes = (root / folder / f"{GENERATORS.find(name).recipe}.yaml" for folder in ("recipe", "fast"))
    for recipe in recipes:
        folder = recipe.parent.relative_to(root).as_posix()
        store.store(name, {"defaults": [recipe.stem]}, folder, package="_global_")
    return True
