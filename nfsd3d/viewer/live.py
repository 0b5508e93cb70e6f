"""``viewer=true``: shows a scene in the browser while it trains, and steers the run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from nfsd3d.callbacks.callback import Callback, LiveRun
from nfsd3d.callbacks.events import StepEvent
from nfsd3d.generators.base import SceneGenerator
from nfsd3d.settings.schedules import value_at
from nfsd3d.settings.viewer import host_and_port, url
from nfsd3d.viewer.panel import Panel
from nfsd3d.viewer.pictures import Scene
from nfsd3d.viewer.pose import pose_of_training
from nfsd3d.viewer.server import Viewer
from nfsd3d.viewer.turns import Turns

REFRESH_S = 1.5
"""Seconds after which the views and the panel show the newest state."""

FAREWELL_S = 0.3
"""Seconds in which the last words reach the browsers."""


class LiveViewer(Callback):
    """The viewer of one run; final.

    Args:
        where: the setting ``viewer``: true, or HOST:PORT.
        console: gets the address; if it is a terminal, the page stays after the run while a browser shows it.
    """

    def __init__(self, where: bool | str, console: Console) -> None:
        self._where, self._console = where, console
        self._turns = Turns()
        self._viewer: Viewer | None = None
        self._panel: Panel | None = None
        self._idle, self._last = False, 0.0
        self._last_step = self._step = self._steps = 0
        self._metrics = dict[int, Mapping[str, float]]()

    def on_start(self, run: LiveRun) -> None:
        """Starts the server, and prints its address."""
        config = run.config
        assert isinstance(run.generator, SceneGenerator)  # checked before
        host, port = host_and_port(self._where)
        facts = f"**{config.prompt}**", f"{config.distill.method}, seed {config.seed}"
        scene = Scene(
            run.generator,
            "\n\n".join(facts),
            run.directory / "mesh" / "model.glb",
            pose_of_training(config.cameras),
            exclusive=self._turns.take,
            tallest=self._turns.tallest,
        )
        self._viewer = Viewer({run.directory.name: lambda: scene}, host, port)
        self._steps = config.train.steps
        scale = value_at(config.distill.guidance_scale, 0.0) * value_at(config.distill.guidance_factor, 0.0)
        times = value_at(config.train.t_min, 0.0), value_at(config.train.t_max, 0.0)
        rest = "δ_D" if config.distill.method == "nfsd" else "the rest of the direction"
        self._panel = Panel(self._viewer.gui, run.controls, self._steps, scale, times, rest)
        self._controls, self._directory = run.controls, run.directory
        self._last, self._last_step, self._step = time.monotonic(), run.finished, run.finished
        line = f"viewer: {url(host, self._viewer.port)}"
        if self._console.quiet:  # of a notebook, which shows the rest elsewhere
            print(line, flush=True)
        else:
            self._console.print(line, highlight=False, soft_wrap=True)

    def on_step(self, event: StepEvent) -> None:
        """Draws what clients wait for, and shows the newest state from time to time."""
        assert self._viewer is not None and self._panel is not None
        self._turns.serve()
        self._idle, self._step = False, event.step
        now = time.monotonic()
        if now - self._last < REFRESH_S and event.step < self._steps and not self._controls.paused:
            return
        if self._viewer.watched:  # even while the views wait for their share: it costs next to nothing
            speed = (event.step - self._last_step) / max(now - self._last, 1e-6)
            self._panel.show_status(event.step, f"step {event.step} of {self._steps}, {speed:.1f} steps/s")
        if self._viewer.watched and self._turns.begin():
            for step, metrics in self._metrics.items():
                self._panel.add_metrics(step, metrics)
            self._metrics.clear()
            if event.tensors is not None:
                self._panel.show_images(event.tensors)
            self._viewer.refresh()
            self._turns.end()
        self._last, self._last_step = now, event.step

    def on_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keeps the numbers for the curves."""
        self._metrics[step] = dict(metrics)

    def on_idle(self) -> None:
        """Draws whatever clients wait for, sharp now, because nothing else is computed."""
        assert self._viewer is not None and self._panel is not None
        self._turns.serve(paused=True)
        self._last, first = time.monotonic(), not self._idle
        if first:
            self._idle = True
            if self._controls.paused:
                self._panel.show_status(self._step, f"paused after step {self._step} of {self._steps}")
            self._viewer.refresh()

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Ends the server; on a terminal, after the last browser has gone."""
        if self._viewer is None:
            return
        try:
            if self._panel is not None:
                status = summary.get("status", "interrupted")
                self._panel.end(f"{status}; to see it again: `nfsd3d view {self._directory}`")
            self._viewer.refresh()
            if self._viewer.watched:
                time.sleep(FAREWELL_S)
            if self._console.is_terminal and summary.get("status") == "done" and self._viewer.watched:
                self._console.print("the viewer stays while a browser shows it; Ctrl+C ends it", soft_wrap=True)
                while self._viewer.watched:
                    self._turns.serve(paused=True)
                    time.sleep(0.02)
        except KeyboardInterrupt:
            pass
        finally:
            self._turns.close()
            self._viewer.close()
