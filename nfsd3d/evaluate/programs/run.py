"""Starts other programs, and waits for them."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from nfsd3d.errors import InputError

SECONDS = 600
"""Limit of one program."""


def run(command: Sequence[str | Path], cwd: Path | None = None) -> str:
    """The standard output of a program.

    Raises:
        InputError: it is not there, fails or does not end.
    """
    name = command[0]
    try:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=True,
        )
    except OSError as error:
        raise InputError(f"{name}: cannot be started ({error.strerror}); is it installed?") from error
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{name}: not done after {SECONDS} s") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip() or error.stdout.strip() or "no message"
        raise InputError(f"{name}: failed ({said.splitlines()[-1]})") from error
    return done.stdout
