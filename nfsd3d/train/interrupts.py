"""Signal handlers that let a run save a checkpoint before it ends.

SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 only set a flag, which the training loop reads between steps: schedulers
send any of them before a time limit. The same signal often arrives twice (from a terminal's process group and from a
parent), so repeated ones do not cut a save short. Only a second SIGINT does, at least :data:`PATIENCE` seconds after
the first: a person who presses Ctrl-C again.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PATIENCE = 2.0
"""Seconds within which further SIGINTs count as the first one."""

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
STOP_SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
"""The signals that end a run, as far as this platform has them."""


class Interrupted(KeyboardInterrupt):
    """The user or the system asked the run to stop; its checkpoint is saved.

    ``exit_code`` is 128 plus the signal's number, as shells report it; the message says how to resume.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """128 plus the signal's number."""
        return 128 + self.signum


class StopRequest:
    """The signal that asked to stop, if any; final."""

    def __init__(self, signum: int | None = None) -> None:
        self.signum = signum
        self.by_program = False
        self._first_sigint: float | None = None
        self._at_once = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the block, a signal raises `Interrupted` immediately: there is nothing to save yet."""
        self.check()
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False
        self.check()

    def ask(self) -> None:
        """Stops as SIGINT does, without a signal: handlers of the program's own are not called."""
        if self.signum is None:
            self.signum, self.by_program = int(signal.SIGINT), True

    def check(self) -> None:
        """Raises `Interrupted` if a signal has arrived."""
        if self.signum is not None:
            raise Interrupted(self.signum, f"interrupted by {signal.Signals(self.signum).name}")

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Stores the first signal; a second SIGINT after :data:`PATIENCE` raises `Interrupted` immediately."""
        del frame
        again = signum == signal.SIGINT and self._first_sigint is not None
        if again and time.monotonic() - (self._first_sigint or 0.0) >= PATIENCE:
            raise Interrupted(signum, "interrupted twice by SIGINT")
        if signum == signal.SIGINT and not again:
            self._first_sigint = time.monotonic()
        if self.signum is None:
            self.signum = signum
            if self._at_once:
                self.check()


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within the block, the signals that end a run only set a flag; afterwards the former handlers are restored.

    Signals that are ignored stay ignored (``nohup``, background jobs of a shell). If a signal has arrived that another
    library has a handler for (submitit requeues a job on SIGUSR2), that handler is called after the block, when the
    checkpoint is saved. In a block within another one, the inner request takes over a signal of the outer one, and
    hands it back at the end, so that a repeated signal interrupts nothing that follows the save. Python allows handlers
    in the main thread only: in others the flag stays unset and signals act as before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield StopRequest()
        return
    former = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    outer = next((request for handler in former.values() if (request := _request_of(handler)) is not None), None)
    request = StopRequest(None if outer is None else outer.signum)
    # None: a handler that was not installed from Python, and that Python cannot restore.
    handled = [signum for signum, handler in former.items() if handler not in (signal.SIG_IGN, None)]
    for signum in handled:
        signal.signal(signum, request.handle)
    try:
        yield request
    finally:
        if outer is not None:
            outer.signum = request.signum
        for signum in handled:
            signal.signal(signum, former[signum])
        if request.signum is not None and not request.by_program:
            handler = former[request.signum]
            if callable(handler) and handler is not signal.default_int_handler and _request_of(handler) is None:
                handler(request.signum, None)


def _request_of(handler: object) -> StopRequest | None:
    """The request that a signal handler belongs to, if it is one's."""
    owner = getattr(handler, "__self__", None)
    return owner if isinstance(owner, StopRequest) else None
