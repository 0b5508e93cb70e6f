"""The training's thread lends its time to viewers: a small share of it while it trains, all of it in a pause.

Problem: a view of a scene that trains must not be drawn while a step changes the scene, and two threads that compute at
once slow each other down by more than their share. Idea: viewers hand their work to the training, which does it between
two steps and keeps an account: work that took a tenth of a second is followed by steps that take at least a tenth of
1/share seconds. A view is kept small enough for that; what takes much longer happens once (a first view compiles its
kernels) and is not paid back in full, or the page would seem dead for a minute.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import TypeVar

from nfsd3d.viewer.view_loop import Outdated

T = TypeVar("T")

SHARE = 0.06
"""Share of the training's time that viewers may take."""

MOST_S = 0.1
"""Seconds that a view may take while the scene trains: it delays the next view by 1/share of that."""

DEBT_S = 2 * MOST_S
"""Seconds that are paid back at most."""


class Turns:
    """Work for the thread that calls :meth:`serve`; final."""

    def __init__(self, share: float = SHARE) -> None:
        self._share = share
        self._waiting: queue.SimpleQueue[tuple[Callable[[], object], int, Future[object]]] = queue.SimpleQueue()
        self._last = self._begin = time.monotonic()
        self._credit = 0.0
        self._seconds_per_pixel = 0.0
        self._paused = self._closed = False

    @property
    def closed(self) -> bool:
        """Whether the training has ended."""
        return self._closed

    def take(self, work: Callable[[], T], pixels: int) -> T:
        """The result of ``work``, or its error; waits for its turn. A view has so many ``pixels``, other work 0.

        Raises:
            Outdated: the training has ended.
        """
        future: Future[T] = Future()
        self._waiting.put((work, pixels, future))  # type: ignore[arg-type]
        if self.closed:  # meanwhile
            self._cancel()
        try:
            return future.result()
        except CancelledError as error:
            raise Outdated from error

    def tallest(self, height: int, aspect: float) -> int:
        """The height of a view, at most ``height``, that takes :data:`MOST_S`; all of it in a pause."""
        if self._paused or self._seconds_per_pixel * height**2 * aspect <= MOST_S:
            return height
        return max(1, int((MOST_S / (self._seconds_per_pixel * aspect)) ** 0.5))

    def serve(self, *, paused: bool = False) -> None:
        """Does waiting work within the share of the time since the last call; in a pause all of it."""
        self._paused = paused
        self._earn()
        while (paused or self._credit >= 0) and not self._waiting.empty():
            work, pixels, future = self._waiting.get()
            self._begin = time.monotonic()
            try:
                future.set_result(work())
            except Exception as error:  # it belongs to the thread that waits
                future.set_exception(error)
            except BaseException:  # this thread is to end
                future.cancel()
                raise
            else:
                if pixels:
                    self._seconds_per_pixel = (time.monotonic() - self._begin) / pixels
            self.end()
        self._last = time.monotonic()

    def begin(self) -> bool:
        """Whether the caller may take time now, the time until :meth:`end`."""
        self._earn()
        self._begin = time.monotonic()
        return self._paused or self._credit >= 0

    def end(self) -> None:
        """Counts the time since :meth:`begin`."""
        now = time.monotonic()
        if not self._paused:
            self._credit = max(self._credit - (now - self._begin), -DEBT_S)
        self._last = now

    def _earn(self) -> None:
        now = time.monotonic()
        earned = self._share * (now - self._last)
        self._credit = min(self._credit + earned, earned)  # unused time is not kept
        self._last = now

    def close(self) -> None:
        """Ends the waiting of all, now and later."""
        self._closed = True
        self._cancel()

    def _cancel(self) -> None:
        with suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()[2].cancel()
