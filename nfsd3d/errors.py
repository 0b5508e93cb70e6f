"""The two kinds of failure that a user meets, with their exit codes, and suggestions for misspelt names."""

import difflib


class InputError(ValueError):
    """The user's input cannot be used: exit code 2, one line, no traceback.

    The message names the setting, the value and the remedy.
    """


class RunFailed(RuntimeError):
    """A run ended without a result (diverged, out of memory): exit code 1, one line, its checkpoint kept."""


def did_you_mean(word: str, known: list[str]) -> str:
    """``" (did you mean A or B?)"`` with the nearest of ``known``, or ``""``; a key's last part counts too."""
    known = list(dict.fromkeys(known))
    near = difflib.get_close_matches(word, known, n=2, cutoff=0.6)
    if not near:
        last = word.rsplit(".", 1)[-1]
        tails = {key.rsplit(".", 1)[-1]: key for key in reversed(known)}
        near = [tails[tail] for tail in difflib.get_close_matches(last, list(tails), n=1, cutoff=0.75)]
    return f" (did you mean {' or '.join(near)}?)" if near else ""
