"""The two kinds of failure that a user meets, how they are printed, and suggestions for misspelt words."""

import os
import re
import sys
import traceback
from collections.abc import Iterable
from difflib import SequenceMatcher


class _OneLine(Exception):
    """An error that a notebook shows on one line, too; with ``NFSD3D_DEBUG=1`` with its traceback."""

    def _render_traceback_(self) -> list[str]:  # IPython's name
        trace = traceback.format_exception(self) if _debugging() else []
        return [*trace, f"{type(self).__name__}: {' '.join(str(self).split())}"]


def _debugging() -> bool:
    return os.environ.get("NFSD3D_DEBUG") == "1"


class InputError(_OneLine, ValueError):
    """The user's input cannot be used: exit code 2, one line, no traceback.

    The message names the setting, the value and the remedy.
    """


class RunFailed(_OneLine, RuntimeError):
    """A run ended without a result (diverged, out of memory): exit code 1, one line, its checkpoint kept."""


def print_error(error: Exception) -> None:
    """Prints an error on one line of stderr, after its traceback for a bug or with ``NFSD3D_DEBUG=1``."""
    if _debugging() or not isinstance(error, InputError | RunFailed):
        traceback.print_exception(error)
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)


def did_you_mean(word: str, known: Iterable[str], suffix: str = "") -> str:
    """``" (did you mean A or B?)"`` with the nearest of ``known``, each followed by ``suffix``; ``""`` if none is near.

    Dotted keys are compared by their last parts, so that neither a shared group makes two words alike nor a missing one
    hides a key. Short words must agree better: one letter of three makes another word.
    """

    def likeness(first: str, second: str) -> float:
        return SequenceMatcher(None, first, second).ratio()

    last = word.rpartition(".")[2]
    cutoff = 0.85 if len(last) < 4 else 0.75 if len(last) < 6 else 0.65
    near = [
        name
        for name in dict.fromkeys(known)
        if likeness(last, name.rpartition(".")[2]) >= cutoff or (len(last) > 2 and last in re.split(r"[._-]", name)[1:])
    ]
    near.sort(key=lambda name: likeness(word, name), reverse=True)
    # A second suggestion only where it resembles the whole word; the first may lack its group.
    near = near[:1] + [name for name in near[1:2] if likeness(word, name) >= 0.6]
    return f" (did you mean {' or '.join(name + suffix for name in near)}?)" if near else ""
