"""The controls of a run that trains: its progress, curves, latents and directions, and how it is steered."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import viser
from torch import Tensor
from viser import uplot

from nfsd3d.callbacks.events import StepTensors
from nfsd3d.callbacks.steering import Controls, Steering
from nfsd3d.errors import InputError
from nfsd3d.generators.base import Images
from nfsd3d.visualize.image_grid import Image
from nfsd3d.visualize.images import to_uint8

CURVES = ("grad_norm", "grad_norm_delta_c", "grad_norm_rest", "grad_norm_parameters", "opacity", "samples_per_ray")
IMAGE_SIZE = 192
"""Height in pixels to which small images are enlarged."""

MOST_POINTS = 2000
"""Points of a curve: of more, every second one is dropped."""

QUANTILE = 0.98
"""The share of a latent's numbers that lie within the range of colours."""


class Panel:
    """Controls that all clients see; final.

    Args:
        gui: where they are.
        controls: of the run.
        steps: the number of steps of the run.
        scale: its guidance scale at the beginning.
        timesteps: its range of timesteps, as fractions.
        rest: the name of the direction without δ_C.
    """

    def __init__(
        self,
        gui: viser.GuiApi,
        controls: Controls,
        steps: int,
        scale: float,
        timesteps: tuple[float, float],
        rest: str,
    ) -> None:
        self._controls, self._steps = controls, steps
        self._points: dict[str, list[tuple[float, float]]] = {}
        self._status = gui.add_markdown("")
        self._done = gui.add_progress_bar(0.0)
        self._pause = gui.add_button("Pause")
        one, save, stop = (gui.add_button(label) for label in ("One step", "Save a checkpoint", "Stop"))
        self._pause.on_click(lambda _: self._toggle())
        one.on_click(lambda _: self._step())
        save.on_click(lambda _: controls.save())
        stop.on_click(lambda _: controls.stop())
        self._buttons = [self._pause, one, save, stop]
        with gui.add_folder("Steering", expand_by_default=False):
            now = controls.steering
            self._scale = gui.add_number("Guidance scale", _given(now.guidance_scale, scale), min=0.0, step=0.5)
            self._rate = gui.add_number("Learning rates times", now.learning_rate_factor, min=0.0, step=0.1)
            shown = _given(now.t_min, timesteps[0]), _given(now.t_max, timesteps[1])
            self._times = gui.add_multi_slider("Timesteps", 0.0, 1.0, 0.01, tuple(round(t, 2) for t in shown))
            apply, follow = gui.add_button("Apply"), gui.add_button("Follow the schedules")
            self._steered = gui.add_markdown("")
        self._given = self._shown()
        self._say_steered()
        apply.on_click(lambda _: self._steer(self._chosen()))
        follow.on_click(lambda _: self._steer(vars(Steering())))
        self._buttons += [apply, follow]
        with gui.add_folder("Curves", expand_by_default=False):
            self._curve = gui.add_dropdown("Number", CURVES, initial_value=CURVES[0])
            series = (uplot.Series(label="step"), uplot.Series(label="", stroke="#1c7ed6", width=1.5))
            scales = {"x": uplot.Scale(time=False)}
            empty = np.zeros(1)
            self._plot = gui.add_uplot((empty, empty), series, scales=scales, aspect=1.6)
        self._curve.on_update(lambda _: self._draw_curve())
        with gui.add_folder("Last view", expand_by_default=False):
            blank = np.zeros((8, 8, 3), np.uint8)
            labels = {"image": "image", "latent": "latent", "delta_c": "δ_C", "rest": rest, "residual": "ε(∅) - ε"}
            self._images = {name: gui.add_image(blank, label=label) for name, label in labels.items()}

    def show_status(self, step: int, text: str) -> None:
        """Shows the progress after ``step`` finished steps."""
        self._done.value = 100 * step / self._steps  # type: ignore[misc]  # read-only by viser's annotation alone
        self._status.content = text
        self._name_pause()
        self._say_steered()

    def show_images(self, tensors: StepTensors) -> None:
        """Shows the first view of a step: image, and three channels of latent, directions and SDS's residual."""
        shown: dict[str, Image] = {"latent": latent_image(tensors.latents[0]), "rest": latent_image(tensors.rest[0])}
        if isinstance(tensors.view, Images):
            shown["image"] = _enlarged(to_uint8(tensors.view.image[0]))
        if tensors.delta_c is not None:
            shown["delta_c"] = latent_image(tensors.delta_c[0])
            shown["residual"] = latent_image(tensors.predictions.uncond[0] - tensors.predictions.noise[0])
        for name, image in shown.items():
            self._images[name].image = image

    def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a point to each curve."""
        for name in CURVES:
            if name in metrics:
                points = self._points.setdefault(name, [])
                points.append((step, metrics[name]))
                if len(points) > MOST_POINTS:
                    del points[1::2]
        self._draw_curve()

    def end(self, text: str) -> None:
        """Shows that the run has ended; nothing can be steered any more."""
        self._status.content = text
        for button in self._buttons:
            button.disabled = True

    def _draw_curve(self) -> None:
        points = np.array(self._points.get(self._curve.value) or [(0.0, 0.0)])
        self._plot.data = points[:, 0], points[:, 1]

    def _toggle(self) -> None:
        (self._controls.resume if self._controls.paused else self._controls.pause)()
        self._name_pause()

    def _step(self) -> None:
        self._controls.step()
        self._name_pause()

    def _name_pause(self) -> None:
        self._pause.label = "Go on" if self._controls.paused else "Pause"

    def _chosen(self) -> dict[str, float | None]:
        """The values that were changed here, and for the others how the run is steered already."""
        kept, before, self._given = vars(self._controls.steering), self._given, self._shown()
        return {name: kept[name] if value == before[name] else value for name, value in self._given.items()}

    def _shown(self) -> dict[str, float]:
        low, high = self._times.value
        return {
            "guidance_scale": float(self._scale.value),
            "learning_rate_factor": float(self._rate.value),
            "t_min": float(low),
            "t_max": float(high),
        }

    def _steer(self, values: Mapping[str, float | None]) -> None:
        try:
            self._controls.steer(**values)
        except InputError as error:
            self._steered.content = f"**{error}**"
            return
        self._say_steered()

    def _say_steered(self) -> None:
        changes = ", ".join(f"{name} {value:g}" for name, value in self._controls.steering.changes().items())
        self._steered.content = f"steered: {changes}" if changes else "as the schedules say"


def _given(value: float | None, otherwise: float) -> float:
    return float(otherwise if value is None else value)


def latent_image(latent: Tensor) -> Image:
    """The first three channels of a latent [C,h,w] as an image [H,W,3]: grey is 0, the colours reach its largest."""
    shown = latent[:3].float()
    largest = shown.abs().flatten().quantile(QUANTILE).clamp_min(1e-12)
    image = (0.5 + shown / (2 * largest)).clamp(0, 1).cpu()
    if len(image) < 3:
        image = image[:1].expand(3, -1, -1)
    return _enlarged(to_uint8(image))


def _enlarged(image: Image) -> Image:
    """``image`` [H,W,3] with whole pixels enlarged to about :data:`IMAGE_SIZE`."""
    times = max(1, IMAGE_SIZE // image.shape[0])
    return image.repeat(times, 0).repeat(times, 1)
