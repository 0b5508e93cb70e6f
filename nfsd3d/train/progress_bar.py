"""The progress of training: a bar on a terminal, a line every 15 seconds elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from nfsd3d.runs.metrics import Metrics

SECONDS_BETWEEN_LINES = 15.0


def print_line(console: Console, text: str) -> None:
    """Prints a text on one line as it is: without markup, colours or the console's line breaks."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


class ProgressBar:
    """Progress over ``total`` steps of which ``done`` are finished; final, a context manager."""

    def __init__(self, console: Console, total: int, done: int) -> None:
        self._console = console
        self._total = total
        self._first, self._started = done, time.monotonic()
        self._last_line = 0.0
        self._text = ""
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[metrics]}"),
                console=console,
            )
            self._task = self._bar.add_task("training", total=total, completed=done, speed="", metrics="")

    def update(self, done: int, metrics: Metrics | None = None) -> None:
        """Shows the number of finished steps; with new ``metrics`` also the gradient's norm and a scene's opacity."""
        speed = self.steps_per_second(done)
        if metrics is not None:
            opacity = f"opacity {metrics['opacity']:.3f}  " if "opacity" in metrics else ""
            self._text = f"{opacity}|grad| {metrics['grad_norm']:.3g}"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, speed=f"{speed:.2f} steps/s", metrics=self._text)
            return
        now = time.monotonic()
        if metrics is not None and (now - self._last_line >= SECONDS_BETWEEN_LINES or done == self._total):
            self._last_line = now
            left = (self._total - done) / speed if speed else 0.0
            self.print(f"step {done}/{self._total}  {speed:.2f} steps/s  {_clock(left)} left  {self._text}")

    def steps_per_second(self, done: int) -> float:
        """Mean speed since the start or the last resumption."""
        elapsed = time.monotonic() - self._started
        return (done - self._first) / elapsed if elapsed else 0.0

    def skip(self, seconds: float) -> None:
        """Leaves out ``seconds`` of waiting, which are no steps' time."""
        self._started += seconds

    def print(self, text: str) -> None:
        """Prints one line above the bar."""
        print_line(self._console, text)

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"
