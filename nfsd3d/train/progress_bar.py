"""The progress of training: a bar on a terminal, a line at least every ten seconds elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from nfsd3d.export.progress import Lines, clock, print_line
from nfsd3d.runs.metrics import Metrics


class ProgressBar:
    """Progress over ``total`` steps of which ``done`` are finished; final, a context manager.

    ``later`` are the seconds that the phases after training will take; the remaining time includes them.
    """

    def __init__(self, console: Console, total: int, done: int) -> None:
        self.later = 0.0
        self._console = console
        self._total = total
        self._first, self._started = done, time.monotonic()
        self._lines, self._shown = Lines(console), False
        self._text = ""
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
                TextColumn("{task.fields[left]}"),
                TextColumn("{task.fields[metrics]}"),
                console=console,
            )
            self._task = self._bar.add_task("training", total=total, completed=done, speed="", left="", metrics="")

    def update(self, done: int, metrics: Metrics | None = None) -> None:
        """Shows the number of finished steps; with new ``metrics`` also the gradient's norm and a scene's opacity."""
        if metrics is not None:
            opacity = f"opacity {metrics['opacity']:.3f}  " if "opacity" in metrics else ""
            self._text = f"{opacity}|grad| {metrics['grad_norm']:.3g}"
        speed = self.steps_per_second(done)
        left = f"{clock((self._total - done) / speed + self.later)} left" if speed else ""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, speed=f"{speed:.2f} steps/s", left=left, metrics=self._text)
            return
        first = metrics is not None and not self._shown
        self._shown = self._shown or first
        line = f"step {done}/{self._total}  {speed:.2f} steps/s  {left}  {self._text}".rstrip()
        self._lines.print(lambda: line, now=first or done == self._total)

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
