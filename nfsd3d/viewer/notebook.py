"""A run in a notebook: a bar and a preview that are updated in place, and a finished run as HTML."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfsd3d.callbacks.callback import Callback, LiveRun
from nfsd3d.export.progress import clock
from nfsd3d.visualize.page import jpeg_source
from nfsd3d.visualize.report import costs, method_name, result_image

if TYPE_CHECKING:
    from nfsd3d.callbacks.events import StepEvent
    from nfsd3d.config.schema import Config
    from nfsd3d.runs.summary import Summary
    from nfsd3d.visualize.image_grid import Image

REFRESH_S = 1.0
"""Seconds between two updates of the bar."""

WIDTH = 512
"""Width in pixels of a preview."""


def in_notebook() -> bool:
    """Whether this program runs in the kernel of a notebook, which shows HTML."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


class NotebookProgress(Callback):
    """Shows the progress of a run in the output of its cell; final."""

    def __init__(self) -> None:
        self._update: Callable[[str], None] | None = None
        self._steps, self._first, self._begin, self._last = 1, 0, 0.0, 0.0
        self._image = self._numbers = ""

    def on_start(self, run: LiveRun) -> None:
        """Opens the output."""
        self._update = _open()
        self._steps, self._first = run.config.train.steps, run.finished
        self._begin = time.monotonic()

    def on_step(self, event: StepEvent) -> None:
        """Updates the bar once a second, and after the last step."""
        now = time.monotonic()
        if now - self._last >= REFRESH_S or event.step == self._steps:
            self._last = now
            speed = (event.step - self._first) / max(now - self._begin, 1e-6)
            left = clock((self._steps - event.step) / speed) if speed else "?"
            self._show(
                event.step / self._steps, f"step {event.step} of {self._steps}, {speed:.1f} steps/s, {left} left"
            )

    def on_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keeps the numbers that are shown beside the bar."""
        self._numbers = ", ".join(f"{n} {metrics[n]:.3g}" for n in ("opacity", "grad_norm") if n in metrics)

    def on_rollback(self, step: int, reason: str) -> None:
        """Says that the run goes on from an earlier step."""
        self._numbers = reason

    def on_preview(self, step: int, image: Image, path: Path) -> None:
        """Shows the preview below the bar from now on."""
        source = jpeg_source(image, WIDTH)
        self._image = f'<img src="{source}" alt="views after step {step}" style="width:{WIDTH}px;max-width:100%">'

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Says how the run ended."""
        status, reason = summary.get("status", ""), summary.get("reason")
        done = summary.get("steps", 0) / self._steps
        self._show(done, " ".join(filter(None, [f"{status}:" if reason else status, str(reason or "")])))

    def _show(self, done: float, text: str) -> None:
        if self._update is not None:
            words = escape(f"{text}, {self._numbers}" if self._numbers else text)
            bar = f'<progress value="{done:.4f}" max="1" style="width:16em;vertical-align:middle"></progress>'
            self._update(f"<div>{bar} {words}</div>{self._image}")


def _open() -> Callable[[str], None]:
    """A function that replaces the HTML of an output of the present cell."""
    from IPython.display import HTML, display

    handle = display(HTML(""), display_id=True)
    return lambda html: handle.update(HTML(html))


def run_html(directory: Path, config: Config, summary: Summary, step: int) -> str:
    """A run as HTML: prompt, facts and its turntable, images or newest preview."""
    facts = [method_name(config), f"seed {config.seed}", *(costs(summary) or [f"step {step}"])]
    facts += [f"status: {status}"] if (status := summary.get("status", "unfinished")) != "done" else []
    image = result_image(directory)
    shown = f'<img src="{image}" alt="views" style="max-width:100%">' if image else ""
    lines = f"<div><b>{escape(config.prompt)}</b></div><div>{escape(' · '.join(facts))}</div>"
    return f"{lines}{shown}<div><code>{escape(str(directory))}</code></div>"
