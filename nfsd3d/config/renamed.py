"""Old spellings of settings, accepted for one minor version with a notice (CHANGELOG.md lists them)."""

import sys
from collections.abc import Mapping

from nfsd3d.errors import InputError

RENAMED = {
    "machine.pixels_at_once": "machine.rays_per_chunk",
    "machine.rows_at_once": "machine.unet_batch_size",
}
"""Settings by their old dotted key; the old spellings go with version 0.3."""

REMOVED = {"viewer": "the live viewer"}
"""Settings that could only be false, by key, and the feature that they named; they go with version 0.3."""

_noticed: set[str] = set()


def notice(old: str, new: str) -> None:
    """Prints one line on stderr, once per process, that ``old`` is now called ``new``."""
    _print_once(old, f"{old} is now called {new}; the old name works until version 0.3")


def _print_once(old: str, text: str) -> None:
    if old not in _noticed:
        _noticed.add(old)
        print(f"note: {text}", file=sys.stderr)


def _check_removed(key: str, value: object) -> None:
    """Prints a notice that a removed setting has no effect.

    Raises:
        InputError: the setting turns on a removed feature.
    """
    if str(value).lower() != "false":
        raise InputError(f"{key}={str(value).lower()} is not built yet: {REMOVED[key]} comes later; remove {key}")
    _print_once(key, f"{key} is not a setting any more; remove it, it is an error from version 0.3 on")


def current_override(override: str) -> str | None:
    """The command-line override ``key=value`` with the current name of its key; None for a removed setting.

    Raises:
        InputError: a removed setting turns on a removed feature.
    """
    key, separator, value = override.partition("=")
    bare = key.lstrip("+~")
    if bare in REMOVED:
        _check_removed(bare, value if separator else "false")
        return None
    if bare not in RENAMED:
        return override
    notice(bare, RENAMED[bare])
    return f"{key.removesuffix(bare)}{RENAMED[bare]}{separator}{value}"


def with_current_names(values: Mapping[str, object], group: str = "") -> dict[str, object]:
    """The settings of a YAML file, those of ``group`` or of all, under their current names.

    Raises:
        InputError: both spellings of one setting are given, or a removed setting turns on a removed feature.
    """
    if group:
        renamed = with_current_names({group: values})[group]
        assert isinstance(renamed, dict)
        return renamed
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for key in REMOVED.keys() & result.keys():
        _check_removed(key, result.pop(key))
    for old, new in RENAMED.items():
        section, name = old.split(".")
        settings = result.get(section)
        if not isinstance(settings, dict) or name not in settings:
            continue
        current = new.split(".")[1]
        if current in settings and settings[current] != settings[name]:
            raise InputError(f"{old}={settings[name]}: is the old name of {new}={settings[current]}; remove {old}")
        settings[current] = settings.pop(name)
        notice(old, new)
    return result
