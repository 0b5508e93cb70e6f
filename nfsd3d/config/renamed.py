"""Old spellings of settings, accepted for one minor version with a notice (CHANGELOG.md lists them)."""

import sys
from collections.abc import Mapping
from typing import Any

from nfsd3d.errors import InputError

RENAMED = {
    "machine.pixels_at_once": "machine.rays_per_chunk",
    "machine.rows_at_once": "machine.unet_batch_size",
}
"""Settings by their old dotted key; the old spellings go with version 0.3."""

_noticed: set[str] = set()


def notice(old: str, new: str) -> None:
    """Prints one line on stderr, once per process, that ``old`` is now called ``new``."""
    if old not in _noticed:
        _noticed.add(old)
        print(f"note: {old} is now called {new}; the old name works until version 0.3", file=sys.stderr)


def current_override(override: str) -> str:
    """The command-line override ``key=value`` with the current name of its key."""
    key, separator, value = override.partition("=")
    bare = key.lstrip("+~")
    if bare not in RENAMED:
        return override
    notice(bare, RENAMED[bare])
    return f"{key.removesuffix(bare)}{RENAMED[bare]}{separator}{value}"


def with_current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings, from YAML, with every old key replaced by its current one.

    Raises:
        InputError: both spellings of one setting are given, with different values.
    """
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for old, new in RENAMED.items():
        group, name = old.split(".")
        settings = result.get(group)
        if not isinstance(settings, dict) or name not in settings:
            continue
        value, current = settings.pop(name), settings.get(new.split(".")[1])
        if current is not None and value is not None and current != value:
            raise InputError(f"{old}={value}: is the old name of {new}={current}; remove {old}")
        settings[new.split(".")[1]] = value if current is None else current
        notice(old, new)
    return result
