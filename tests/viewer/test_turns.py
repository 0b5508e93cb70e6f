"""The share of the training's time that viewers take."""

import threading
import time

import pytest

from nfsd3d.viewer.turns import DEBT_S, MOST_S, Turns
from nfsd3d.viewer.view_loop import Outdated


class Caller(threading.Thread):
    """Takes one turn after the other, each of some seconds, until it is told that the training has ended."""

    def __init__(self, turns, seconds, pixels=0):
        super().__init__(daemon=True)
        self.turns, self.seconds, self.pixels, self.taken, self.spent, self.ended = (
            turns,
            seconds,
            pixels,
            [],
            [],
            False,
        )
        self.start()

    def run(self):
        try:
            while True:
                self.turns.take(self._work, self.pixels)
        except Outdated:
            self.ended = True

    def _work(self):
        begin = time.monotonic()
        time.sleep(self.seconds)
        self.taken.append(threading.get_ident())
        self.spent.append(time.monotonic() - begin)


def train(turns, seconds, step=0.005, **options):
    """Steps for so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(step)
        turns.serve(**options)


@pytest.mark.parametrize(("share", "work"), [(0.2, 0.01), (0.2, 0.06), (0.5, 0.02)])
def test_a_viewer_takes_its_share_and_no_more(share, work):
    turns = Turns(share)
    caller = Caller(turns, work)
    begin = time.monotonic()
    train(turns, 1.5)
    elapsed = time.monotonic() - begin
    assert 0.4 * share * elapsed <= sum(caller.spent) <= share * elapsed + max(caller.spent)
    assert set(caller.taken) == {threading.get_ident()}  # in the training's thread
    turns.close()
    caller.join(5)
    assert caller.ended


def test_time_without_work_is_not_saved_up():
    turns = Turns(0.1)
    train(turns, 0.5)
    caller = Caller(turns, 0.02)
    time.sleep(0.05)
    turns.serve()
    assert len(caller.taken) == 1
    turns.close()


def test_work_that_took_long_once_does_not_keep_the_next_waiting_for_long():
    turns = Turns(0.2)
    first = Caller(turns, 1.0)
    train(turns, 1.2)
    assert len(first.taken) == 1
    begin = time.monotonic()
    while len(first.taken) < 2 and time.monotonic() < begin + 20:
        train(turns, 0.01)
    assert time.monotonic() - begin < DEBT_S / 0.2 + 1.0 + 0.8
    turns.close()


def test_in_a_pause_all_work_is_done():
    turns = Turns(0.01)
    caller = Caller(turns, 0.01)
    train(turns, 0.5, step=0.001, paused=True)
    assert len(caller.taken) > 20
    turns.close()


def test_errors_are_the_callers():
    turns, caught = Turns(), []

    def take():
        try:
            turns.take(lambda: 1 / 0, 0)
        except ZeroDivisionError as error:
            caught.append(error)

    thread = threading.Thread(target=take)
    thread.start()
    time.sleep(0.05)
    turns.serve()
    thread.join(5)
    assert len(caught) == 1


def test_after_the_end_nothing_waits():
    turns = Turns()
    turns.close()
    with pytest.raises(Outdated):
        turns.take(lambda: 1, 0)


def test_a_view_is_as_tall_as_fits_into_the_longest_turn():
    turns = Turns(1.0)
    assert turns.tallest(512, 1.0) == 512  # nothing is known yet
    caller = Caller(turns, 0.04, pixels=100 * 100)
    train(turns, 0.2)
    height = turns.tallest(4000, 1.0)
    assert height == pytest.approx(100 * (MOST_S / caller.spent[-1]) ** 0.5, rel=0.1)
    assert turns.tallest(4000, 4.0) == pytest.approx(height / 2, rel=0.1) and turns.tallest(50, 1.0) == 50
    turns.serve(paused=True)
    assert turns.tallest(4000, 1.0) == 4000
    turns.close()
    caller.join(5)


def test_other_work_of_the_training_counts():
    turns = Turns(0.1)
    time.sleep(0.05)
    assert turns.begin()
    time.sleep(0.05)
    turns.end()
    assert not turns.begin()
    time.sleep(0.6)
    assert turns.begin()
