"""The rendering for one client, in a thread of its own: coarse while the camera moves, sharp when it rests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

Request = TypeVar("Request")

MOVING_S = 0.1
"""Seconds that a coarse view may take."""

REST_S = 0.15
"""Seconds without a new request after which the view is made sharper."""

SMALLEST = 32
"""Height in pixels of the coarsest view."""


class Outdated(Exception):
    """The view is not wanted any more: a newer request has come, or the scene has gone."""


class ViewLoop(Generic[Request]):
    """Renders the newest request again and again with more pixels, until another one comes.

    Args:
        render: (request, height in pixels, check) -> nothing; draws a view, and calls check now and then, which raises
            :class:`Outdated` as soon as the view is no longer wanted.
        tallest: the height of a request's sharp view.
    """

    def __init__(
        self, render: Callable[[Request, int, Callable[[], None]], None], tallest: Callable[[Request], int]
    ) -> None:
        self._render, self._tallest = render, tallest
        self._changed = threading.Condition()
        self._request: Request | None = None
        self._number = self._drawn = 0
        self._stopped = self._again = self._busy = False
        self._pixels_per_second = 1e5  # of a square view; measured from then on
        self._thread = threading.Thread(target=self._run, name="view", daemon=True)

    def start(self) -> None:
        """Starts the thread, which waits for the first request."""
        self._thread.start()

    def ask(self, request: Request) -> None:
        """Replaces the request."""
        with self._changed:
            self._request = request
            self._number += 1
            self._changed.notify()

    def refresh(self) -> None:
        """Draws the last request once more, sharp at once, unless a view is being drawn or the camera moves."""
        with self._changed:
            if self._request is not None and self._number == self._drawn and not self._busy:
                self._again = True
                self._changed.notify()

    def stop(self) -> None:
        """Ends the thread, in the middle of a view too."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if threading.current_thread() is not self._thread and self._thread.is_alive():
            self._thread.join()

    def heights(self, tallest: int) -> list[int]:
        """The heights of the views of a request, from the coarse one on, each at most twice the one before."""
        found = [tallest]
        coarse = max(SMALLEST, int((self._pixels_per_second * MOVING_S) ** 0.5))
        while found[0] > coarse:
            found.insert(0, max(coarse, found[0] // 2))
        return found

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.wait_for(lambda: self._stopped or self._again or self._number != self._drawn)
                if self._stopped:
                    return
                again = self._number == self._drawn
                request, self._drawn = self._request, self._number
                self._again, self._busy = False, True
            assert request is not None
            with suppress(Outdated):
                self._draw(request, again)

    def _draw(self, request: Request, again: bool) -> None:
        """Draws the views of a request; the coarse one to its end, so that a moving camera is never without.

        ``again`` draws the last one only.

        Raises:
            Outdated: a newer request has come, or the loop is to stop.
        """
        coarse, *finer = [self._tallest(request)] if again else self.heights(self._tallest(request))
        begin = time.perf_counter()
        self._render(request, coarse, self._check_stopped)
        self._pixels_per_second = coarse**2 / max(time.perf_counter() - begin, 1e-6)
        if finer:
            with self._changed:
                self._changed.wait_for(self._is_outdated, REST_S)

        def check() -> None:
            if self._is_outdated():
                raise Outdated

        for height in finer:
            check()
            self._render(request, height, check)

    def _is_outdated(self) -> bool:
        return self._stopped or self._number != self._drawn

    def _check_stopped(self) -> None:
        if self._stopped:
            raise Outdated
