"""The paths of a configuration, made independent of the folder that the program was started in."""

import os

from nfsd3d.config.schema import Config
from nfsd3d.settings.paths import user_path

SETTINGS_OF_A_RUN = ("source_run", "source_mesh", "source_image")
SETTINGS_OF_A_PRIOR = ("model", "layout", "vae", "lora")


def with_absolute_paths(config: Config) -> Config:
    """``config`` with the absolute paths of the files and folders that it names, so that a run resumes from anywhere.

    What is not there, such as a hub id, is left as it is.
    """
    values = config.to_dict()
    for group, names in ((values, SETTINGS_OF_A_RUN), (values["prior"], SETTINGS_OF_A_PRIOR)):
        for name in names:
            given = group[name]
            group[name] = [_absolute(place) for place in given] if isinstance(given, list) else _absolute(given)
    return Config.from_dict(values)


def _absolute(place: str | None) -> str | None:
    """``FILE`` and ``FILE:WEIGHT`` with the absolute path of a file or folder that is there."""
    if not place:
        return place
    if os.path.exists(user_path(place)):
        return os.path.abspath(user_path(place))
    path, _, weight = place.rpartition(":")
    return f"{os.path.abspath(user_path(path))}:{weight}" if path and os.path.exists(user_path(path)) else place
