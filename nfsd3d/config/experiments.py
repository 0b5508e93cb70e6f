"""Finds experiment files: the project's in ``configs/``, a user's own anywhere, and the ``config.yaml`` of runs."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from nfsd3d.config.yaml_files import read_yaml
from nfsd3d.errors import InputError, did_you_mean
from nfsd3d.settings.paths import user_path

_GROUPS_OF_A_RUN = {"machine", "backend", "distill", "prior", "generator", "cameras", "train", "export"}


def config_root() -> Path:
    """The folder of the project's YAML files, in a checkout as in an installed wheel."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def choices_of(group: str, *folders: Path) -> list[str]:
    """The choices of a group that the project and ``folders`` have files for; the group ``""`` holds experiments."""
    # Not Path.is_dir, which raises for a name that is too long.
    groups = [folder / group for folder in (config_root(), *folders) if os.path.isdir(folder / group)]
    return sorted({path.stem for folder in groups for path in folder.glob("*.yaml")})


@dataclass(frozen=True)
class Experiment:
    """A primary YAML file: one with a defaults list, or a run's fully ``resolved`` ``config.yaml``.

    ``path`` is absolute. ``label`` names run directories: the file's stem, or the method of a resolved one.
    ``allow_env`` lets its files read environment variables.
    """

    path: Path
    resolved: bool
    label: str
    allow_env: bool = False


def find_experiment(name_or_path: str | Path, *, allow_env: bool = False) -> Experiment:
    """The experiment file that ``nfsd``, ``configs/nfsd.yaml`` or any path means.

    A YAML file at that path, from the current folder, comes first. Else the name, with or without ``configs/`` and
    ``.yaml``, means one of the project's own, so that the documented commands work from any folder.

    Raises:
        InputError: no such file (the nearest ones are named), or not a YAML mapping.
    """
    text = str(name_or_path)
    given = user_path(text)
    name = given.relative_to("configs") if given.parts[:1] == ("configs",) else given
    own = config_root() / (name if name.suffix or not name.name else name.with_name(f"{name.name}.yaml"))
    # Not Path.is_file, which raises for impossible paths (a name too long, a folder without read permission).
    found = [path for path in (given, own) if os.path.isfile(path)]
    if not found:
        names = choices_of("")
        near = did_you_mean(given.stem, names, given.suffix) if given.name else ""
        there = ", ".join(f"configs/{name}.yaml" for name in names)
        raise InputError(f"--config {text}: no such file{near}; there are {there}")
    # A file called nfsd, such as a folder's own program, does not hide the experiment of that name.
    path = next((path for path in found if path.suffix == ".yaml"), found[0])
    if path.suffix != ".yaml":
        raise InputError(f"--config {text}: not a .yaml file; rename it to {path.stem}.yaml")
    content = read_yaml(path, f"--config {text}")
    if "defaults" in content:
        if not isinstance(content["defaults"], list) or not content["defaults"]:
            raise InputError(f"--config {text}: defaults must be a list, such as defaults: [nfsd, _self_]")
        return Experiment(path.resolve(), resolved=False, label=path.stem, allow_env=allow_env)
    distill = content.get("distill")
    method = distill.get("method") if isinstance(distill, dict) else None
    # The method names folders before it is validated.
    if not isinstance(method, str) or not re.fullmatch(r"[\w-]+", method) or not content.keys() >= _GROUPS_OF_A_RUN:
        raise InputError(f"--config {text}: has no defaults list; begin it with defaults: [nfsd, _self_]")
    return Experiment(path.resolve(), resolved=True, label=method)
