"""The two kinds of failure that a user meets, and their exit codes."""


class InputError(ValueError):
    """The user's input cannot be used: exit code 2, one line, no traceback.

    The message names the setting, the value and the remedy.
    """


class RunFailed(RuntimeError):
    """A run ended without a result (diverged, out of memory): exit code 1, one line, its checkpoint kept."""
