"""The progress of a phase of a run: a bar on a terminal, a line at least every ten seconds elsewhere."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

SECONDS_BETWEEN_LINES = 10.0


def print_line(console: Console, text: str) -> None:
    """Prints a text on one line as it is: without markup, colours or the console's line breaks."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """A time as m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"


class Lines:
    """Prints lines to a console that is no terminal, but not more often than every ten seconds; final."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = time.monotonic()

    def print(self, text: Callable[[], str], *, now: bool = False) -> None:
        """Prints ``text()`` if it is time for a line, or ``now``."""
        if not (now or self.due):
            return
        self._last = time.monotonic()
        print_line(self._console, text())

    @property
    def due(self) -> bool:
        """Whether it is time for a line."""
        return time.monotonic() - self._last >= SECONDS_BETWEEN_LINES


@contextmanager
def phase_progress(
    console: Console, name: str, later: Callable[[], float] = lambda: 0.0
) -> Iterator[Callable[[str, float], None]]:
    """Yields a callback (``extract.OnProgress``): the present stage, and the fraction in [0,1] that is done.

    ``later`` are the seconds that the phases after this one will take; the remaining time includes them.
    """
    columns = (TextColumn(name), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[left]}"))
    bar = Progress(*columns, TextColumn("{task.description}"), console=console, disable=not console.is_terminal)
    lines, begin = Lines(console), time.monotonic()
    with bar:
        task = bar.add_task("", total=1.0, left="")

        def show(stage: str, done: float) -> None:
            elapsed = time.monotonic() - begin
            left = f"{clock(elapsed * (1 - done) / done + later())} left" if done > 0 else ""
            bar.update(task, description=stage, completed=done, left=left)
            if not console.is_terminal:
                lines.print(lambda: "  ".join(part for part in (f"{name} {done:.0%}", stage, left) if part))

        yield show


@contextmanager
def waiting(console: Console, text: str) -> Iterator[None]:
    """Shows that a block without a known end goes on: its seconds on a terminal, elsewhere a line now and then."""
    if console.is_terminal:
        columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
        with Progress(*columns, console=console, transient=True) as bar:
            bar.add_task(text)
            yield
        return
    ended, begin = threading.Event(), time.monotonic()

    def print_lines() -> None:
        while not ended.wait(SECONDS_BETWEEN_LINES):
            print_line(console, f"{text}: {clock(time.monotonic() - begin)}")

    thread = threading.Thread(target=print_lines, daemon=True, name="progress")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
