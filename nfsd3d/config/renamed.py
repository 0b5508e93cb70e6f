"""Old spellings of settings, accepted for one minor version with a notice (CHANGELOG.md lists them)."""

import sys
from collections.abc import Mapping, Sequence
from functools import cache

from nfsd3d.errors import InputError

RENAMED = {
    "machine.pixels_at_once": "machine.rays_per_chunk",
    "machine.rows_at_once": "machine.unet_batch_size",
}
"""Settings by their old dotted key; the old spellings go with version 0.3."""

_DIVERGED_0_1 = {"after", "window", "opacity_below", "opacity_above"}
"""The settings of ``train.diverged`` in a run's file of version 0.1."""


def notice(old: str, new: str) -> None:
    """Prints one line on stderr, once per process, that ``old`` is now called ``new``."""
    print_once(f"{old} is now called {new}; the old name works until version 0.3")


@cache
def print_once(text: str) -> None:
    """Prints a notice on stderr, once per process."""
    print(f"note: {text}", file=sys.stderr)


def current_name(argument: str, renamed: Mapping[str, str]) -> str:
    """``name`` or ``name=value`` of a command line with the current name in ``renamed``, with a notice on stderr."""
    key, separator, value = argument.partition("=")
    old = key.lstrip("+~")
    if old not in renamed:
        return argument
    notice(old, renamed[old])
    return f"{key.removesuffix(old)}{renamed[old]}{separator}{value}"


def _shorten_window(train: dict[str, object]) -> None:
    """Makes ``train.diverged.window`` a fraction where a run's file of version 0.1 has one longer than the run.

    Its default was 100 steps, which had no effect in shorter runs and is an error now.
    """
    settings, steps = train.get("diverged"), train.get("steps")
    if isinstance(settings, dict) and settings.keys() == _DIVERGED_0_1 and isinstance(steps, int):
        window = settings["window"]
        if isinstance(window, int) and window > steps:
            train["diverged"] = settings | {"window": 0.05}


def current_overrides(overrides: Sequence[str]) -> list[str]:
    """The overrides of a command line with the current names of their keys.

    Raises:
        InputError: both spellings of one setting have different values.
    """
    given = {key.lstrip("+~"): value for key, _, value in (line.partition("=") for line in overrides)}
    for old, new in RENAMED.items():
        if old in given and given.get(new, given[old]) != given[old]:
            raise InputError(f"{old}={given[old]}: is the old name of {new}={given[new]}; remove {old}")
    return [current_name(line, RENAMED) for line in overrides]


def with_current_names(values: dict[str, object], group: str = "") -> dict[str, object]:
    """``values``, the settings of a YAML file, those of ``group`` or of all, changed to their current names.

    Raises:
        InputError: both spellings of one setting are given.
    """
    groups = {group: values} if group else values
    train = groups.get("train")
    if isinstance(train, dict):
        _shorten_window(train)
    for old, new in RENAMED.items():
        (section, name), current = old.split("."), new.split(".")[1]
        settings = groups.get(section)
        if isinstance(settings, dict) and name in settings:
            value = settings.pop(name)
            if settings.setdefault(current, value) != value:
                raise InputError(f"{old}={value}: is the old name of {new}={settings[current]}; remove {old}")
            notice(old, new)
    return values
