"""The rendering loop of a client: coarse while requests come, sharper when they rest."""

import itertools
import threading
import time

import pytest

from nfsd3d.viewer import view_loop
from nfsd3d.viewer.view_loop import SMALLEST, ViewLoop


class Drawing:
    """Draws by waiting a time that grows with the pixels; records (request, height) of what was drawn to the end."""

    def __init__(self, seconds_per_pixel: float = 0.0) -> None:
        self.drawn: list[tuple[str, int]] = []
        self.begun: list[tuple[str, int]] = []
        self._seconds = seconds_per_pixel
        self._more = threading.Condition()

    def __call__(self, request, height, check):
        self.begun.append((request, height))
        end = time.monotonic() + self._seconds * height**2
        while time.monotonic() < end:
            time.sleep(0.001)
            check()
        with self._more:
            self.drawn.append((request, height))
            self._more.notify_all()

    def wait(self, *what: tuple[str, int]) -> None:
        with self._more:
            assert self._more.wait_for(lambda: all(one in self.drawn for one in what), 10), self.drawn


@pytest.fixture
def started(monkeypatch):
    monkeypatch.setattr(view_loop, "REST_S", 0.05)
    loops = []

    def start(drawing, tallest=256):
        loops.append(ViewLoop(drawing, lambda request: tallest))
        loops[-1].start()
        return loops[-1]

    yield start
    for loop in loops:
        loop.stop()


def test_a_view_at_rest_is_made_sharper_in_steps(started):
    drawing = Drawing(2e-6)
    loop = started(drawing)
    loop.ask("a")
    drawing.wait(("a", 256))
    heights = [height for _, height in drawing.drawn]
    assert heights == sorted(heights) and len(heights) > 1
    assert all(after <= 2 * before for before, after in itertools.pairwise(heights))
    time.sleep(0.1)
    assert len(drawing.drawn) == len(heights)  # and then it rests


def test_a_new_request_ends_a_sharp_view_and_never_a_coarse_one(started):
    drawing = Drawing(5e-5)  # a sharp view takes three seconds
    loop = started(drawing)
    loop.ask("a")
    while ("a", 256) not in drawing.begun:
        time.sleep(0.005)
    for request in "bcdef":
        loop.ask(request)
        time.sleep(0.06)
    assert ("a", 256) not in drawing.drawn
    loop.stop()
    coarse = {request: height for request, height in reversed(drawing.begun)}  # the first view of each
    assert len(coarse) > 2 and "f" in coarse
    # The last one may have been ended by the loop's end.
    assert {request: height for request, height in coarse.items() if request != "f"}.items() <= set(drawing.drawn)


def test_what_takes_longer_begins_coarser(started):
    loop = ViewLoop(Drawing(), lambda request: 512)
    loop._pixels_per_second = 1e9
    assert loop.heights(512) == [512]
    loop._pixels_per_second = 1e6
    assert loop.heights(512) == [316, 512]
    loop._pixels_per_second = 1.0
    assert loop.heights(512) == [SMALLEST, 64, 128, 256, 512]
    assert loop.heights(20) == [20]


def test_it_stops_in_the_middle_of_a_view():
    drawing = Drawing(1.0)
    loop = ViewLoop(drawing, lambda request: 64)
    loop.start()
    loop.ask("a")
    while not drawing.begun:
        time.sleep(0.005)
    begin = time.monotonic()
    loop.stop()
    assert time.monotonic() - begin < 2 and not drawing.drawn


def test_a_refresh_draws_the_sharp_view_alone(started):
    drawing = Drawing(2e-6)
    loop = started(drawing)
    loop.refresh()  # there is no request yet
    loop.ask("a")
    drawing.wait(("a", 256))
    time.sleep(0.1)
    before = len(drawing.drawn)
    loop.refresh()
    time.sleep(0.5)
    assert drawing.drawn[before:] == [("a", 256)]


def test_a_refresh_does_not_disturb_a_view_that_is_being_drawn(started):
    drawing = Drawing(6e-6)
    loop = started(drawing)
    loop.ask("a")
    for _ in range(10):
        loop.refresh()
        time.sleep(0.01)
    drawing.wait(("a", 256))
    heights = [height for _, height in drawing.begun]
    assert heights == sorted(heights)
