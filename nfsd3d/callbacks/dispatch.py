"""Calls several callbacks in order, and names the one that fails."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from nfsd3d.callbacks.callback import Callback, LiveRun
from nfsd3d.errors import InputError, RunFailed


class CallbackFailed(RunFailed):
    """A callback raised an error, which is the cause of this one."""

    def _render_traceback_(self) -> list[str]:
        """In a notebook: the traceback of the callback's own error."""
        return [*traceback.format_exception(self.__cause__), *super()._render_traceback_()]


class Callbacks:
    """The callbacks of a run; final."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self._callbacks = tuple(callbacks)
        self._started: list[Callback] = []

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    def start(self, run: LiveRun) -> None:
        """`Callback.on_start` of each.

        Raises:
            InputError: one cannot start with its settings.
            CallbackFailed: as :meth:`each`.
        """
        for callback in self._callbacks:
            self._started.append(callback)
            with _named(callback, "on_start", InputError):
                callback.on_start(run)

    def each(self, method: str, *arguments: object) -> None:
        """Calls a method of `Callback` of each, in order.

        Raises:
            CallbackFailed: one raised an error.
        """
        for callback in self._callbacks:
            with _named(callback, method):
                getattr(callback, method)(*arguments)

    def idle(self) -> None:
        """`Callback.on_idle` of each."""
        self.each("on_idle")

    def end(self, summary: Mapping[str, Any]) -> None:
        """`Callback.on_end` of each that was started: the run is over, and an error is only reported, on stderr."""
        for callback in self._started:
            try:
                callback.on_end(summary)
            except Exception as error:
                print(f"{type(callback).__name__}.on_end: {type(error).__name__}: {error}", file=sys.stderr)


@contextmanager
def _named(callback: Callback, method: str, *passed: type[Exception]) -> Iterator[None]:
    """Names the callback in the errors of the block, but for those that are ``passed``."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, passed):
            raise
        kind = "" if isinstance(error, InputError | RunFailed) else f"{type(error).__name__}: "
        raise CallbackFailed(f"{type(callback).__name__}.{method}: {kind}{error}") from error


NONE = Callbacks()
"""No callbacks."""
