"""SIGINT and SIGTERM handlers that set a flag, which the loop reads between steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """The user or the system asked the run to stop; its checkpoint is saved.

    ``exit_code`` is 130 after SIGINT and 143 after SIGTERM; the message says how to resume.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """128 plus the signal's number, as shells report it."""
        return 128 + self.signum


class StopRequest:
    """The signal that asked to stop, if any; final."""

    def __init__(self) -> None:
        self.signum: int | None = None
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

    def check(self) -> None:
        """Raises `Interrupted` if a signal has arrived."""
        if self.signum is not None:
            raise Interrupted(self.signum, f"interrupted by signal {self.signum}")

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Stores the signal; a second one raises `KeyboardInterrupt` immediately."""
        del frame
        if self.signum is not None:
            signal.default_int_handler(signum, None)
        self.signum = signum
        if self._at_once:
            self.check()


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within the block, SIGINT and SIGTERM only set a flag; afterwards the former handlers are restored.

    Python allows handlers in the main thread only: in others the flag stays unset and signals act as before.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    former = {signum: signal.signal(signum, request.handle) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)
