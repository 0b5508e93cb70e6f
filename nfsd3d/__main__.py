"""The command ``nfsd3d``, also as ``python -m nfsd3d``: signals end it in order, from the first import on.

A signal before a run has begun ends the program at once with a line on stderr; a run saves a checkpoint first. Output
that nobody can read any more, because a terminal was closed or a pipe's reader has ended, does not end a run.
"""

import gc
import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TextIO

from nfsd3d.train.interrupts import STOP_SIGNALS, Interrupted, stop_requests

GARBAGE_THRESHOLDS = (10_000, 10, 10)
"""New objects until Python looks for unreachable ones, and every how many such searches it looks among older ones.

Imports make half a million objects that stay; with Python's own 700 the searches are a fifth of a start.
"""


class LastingStream:
    """A text stream that drops what cannot be written, when its terminal or the reader of its pipe is gone.

    None stands for a stream that was closed before the program began. What the encoding lacks is written as an escape.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w") if stream is None else stream
        if isinstance(self._stream, io.TextIOWrapper):
            self._stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes ``text`` if that is possible; returns its length."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes the stream; if that is impossible, from now on it writes to nowhere."""
        try:
            self._stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (default: the process's); returns the exit code. It is the last thing that a process does."""
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    sys.stdout, sys.stderr = LastingStream(sys.stdout), LastingStream(sys.stderr)
    code: int | None = None
    try:
        with stop_requests() as stop, stop.at_once():
            from nfsd3d.cli.main import main as run_command

            code = run_command(argv)
    except Interrupted as interruption:
        if code is None:  # otherwise the result is decided, and its message printed
            print(f"\n{interruption}", file=sys.stderr)
            code = interruption.exit_code
    for signum in STOP_SIGNALS:  # the result is decided: the interpreter's exit cannot change it
        signal.signal(signum, signal.SIG_IGN)
    gc.freeze()  # at exit Python searches what libraries have made, three times, for more than a second
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code


if __name__ == "__main__":
    raise SystemExit(main())
