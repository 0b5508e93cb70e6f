"""Types of command-line arguments that the subcommands share."""

import argparse
import math
from collections.abc import Callable


def whole_number(smallest: int) -> Callable[[str], int]:
    """An argparse type: whole numbers from ``smallest`` on."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = smallest - 1
        if value < smallest:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, at least {smallest}")
        return value

    return parse


def elevation(text: str) -> float:
    """An argparse type: degrees from -90 to 90."""
    return _number(text, "must be degrees from -90 to 90", lambda value: -90 <= value <= 90)


def density_or_auto(text: str) -> float | str:
    """An argparse type: ``auto``, or a density above 0."""
    return text if text == "auto" else _number(text, "must be auto or a density above 0", lambda value: value > 0)


def _number(text: str, expected: str, is_allowed: Callable[[float], bool]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and is_allowed(value)):
        raise argparse.ArgumentTypeError(f"{text!r} {expected}")
    return value
