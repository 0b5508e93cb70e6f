"""Divergence: limits on a run's numbers, relative to its own history and to the range of its data.

Non-finite gradients on a GPU.
Problem: reading a number synchronises host and device, so a GPU's gradient norm is read at logged steps only. By then
a NaN would have spread through all parameters.
Idea: :func:`drop_unless_finite` decides on the GPU. A gradient whose norm is not finite becomes 0, so the parameters
stay finite. The largest norm since the last reading reveals it at the next logged step.
Measurement: tests/train/test_host_device_sync.py counts no synchronisation outside of the samplers; a CPU run reads
every norm immediately.

Limits relative to the history.
Problem: the usual size of a gradient depends on method, weighting, resolution and model, so no absolute limit fits all
runs. A limit relative to the last steps would rise with a slow divergence.
Idea: a gradient norm is compared with the geometric mean of all earlier ones, on which one outlier has little effect.
The largest parameter is compared with the largest one of earlier sound checkpoints.
Measurement: docs/reliability.md lists the largest multiples in normal runs of every method.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nfsd3d.config.schema import Config
from nfsd3d.generators.base import Generator, ImageGenerator, Latents
from nfsd3d.settings.train import DivergedSettings

FEWEST_NORMS = 3
"""Gradient norms before which nothing is compared with their mean: the first ones may be small."""

IMAGES_ABOVE = 3.0
"""Limit on images scaled to [-1,1], before they are clamped: the last update moved a pixel across the whole range."""

REMEDIES = {
    "gradient": "lower train.learning_rate.* or set train.gradient_clip",
    "empty": "lower train.regularizers.sparsity or train.learning_rate.*, or raise generator.density_blob_scale",
    "full": "raise train.regularizers.sparsity or lower train.learning_rate.*",
    "values": "lower train.learning_rate.*",
}
"""The settings to change, by limit."""


class Diverged(Exception):
    """The run cannot recover; the message gives the reason and the settings to change.

    ``retry``: whether lower learning rates may help.
    """

    def __init__(self, message: str, *, retry: bool = True) -> None:
        super().__init__(message)
        self.retry = retry


@dataclass
class History:
    """The state of a :class:`Watchdog`, as plain values that checkpoints keep.

    ``exceeded`` maps each limit that is exceeded now to the step since when. ``mean_log_norm`` is the mean logarithm of
    ``norms`` gradient norms. ``unread`` is the largest norm since the last observation, -1 if one is not finite, None
    without any. ``parameters`` is the largest absolute parameter of sound states, None before them.
    """

    exceeded: dict[str, int] = field(default_factory=dict)
    norms: int = 0
    mean_log_norm: float = 0.0
    unread: float | None = None
    parameters: float | None = None


class Watchdog:
    """Checks the numbers of a run of ``steps`` steps against ``limits`` and its ``history``, which it updates; final.

    ``cause`` explains a first gradient that is not finite. ``images``: values are those of images, which are clamped
    before the next step; :data:`IMAGES_ABOVE` limits them, too.
    """

    def __init__(
        self, limits: DivergedSettings, steps: int, history: History, cause: str = "", *, images: bool = False
    ) -> None:
        self.history = history
        self._limits, self._steps, self._cause = limits, steps, cause
        self._first_step = math.ceil(limits.after * steps)
        self._images = images
        self._window = window_steps(limits.window, steps)
        self._unread: Tensor | None = None
        self._first: Tensor | None = None

    def add_norm(self, step: int, norm: Tensor) -> None:
        """Keeps a step's gradient norm, a scalar, for the next reading; without host-device synchronisation."""
        if step == 1:
            self._first = norm
        self._unread = norm if self._unread is None else torch.maximum(norm, self._unread)

    def observe(
        self, step: int, *, opacity: float | None = None, largest_value: float | None = None
    ) -> Diverged | None:
        """The reason to stop after ``step`` finished steps, or None; call it every step or every few.

        Reads the gradient norms since the last call. ``opacity`` is a scene's mean opacity, ``largest_value`` the
        result of :func:`largest_value`. None stands for a number that the generator lacks, or that was not computed.
        """
        norm = self._read_norm()
        self._unread, self.history.unread = None, None
        for name, value in (("gradient norm", norm), ("opacity", opacity), ("largest value", largest_value)):
            if value is not None and not math.isfinite(value):
                if self._first is not None and not self._first.isfinite():
                    cause = f"the {name} is {value} in the first step, before any update: {self._cause}"
                    return Diverged(cause, retry=False)
                return Diverged(f"the {name} is {value} at step {step}: {REMEDIES['gradient']}")
        numbers = {"gradient": norm, "empty": opacity, "full": opacity, "values": largest_value}
        for name, number in numbers.items():
            if number is None:
                continue
            excess = self._excess(name, number)
            if excess is None:
                self.history.exceeded.pop(name, None)
                continue
            since = self.history.exceeded.setdefault(name, step)
            if self._lasts(name, step, since):
                return Diverged(f"{excess} since step {since}; {REMEDIES[name]}")
        self._learn(norm)
        return None

    def parameters_exceed(self, largest: float) -> bool:
        """Whether the ``largest`` absolute parameter is far outside of the run's history, or not finite."""
        reference = max(self.history.parameters or 0.0, 1.0)  # 1, because parameters may start at 0
        return not largest <= self._limits.growth * reference

    def sound(self, largest: float) -> bool:
        """Whether no limit is exceeded, with a ``largest`` absolute parameter; also counts gradient norms not observed.

        Synchronises with a GPU.
        """
        norm = self._read_norm()
        finite = norm is None or math.isfinite(norm)
        self.history.unread = norm if finite else -1.0  # JSON has no NaN
        bad = norm is not None and (not finite or self._excess("gradient", norm) is not None)
        return not (bad or self.history.exceeded or self.parameters_exceed(largest))

    def _learn(self, norm: float | None) -> None:
        """Adds a norm to the history: at most the limit, and not the vanishing norms of a scene that is empty."""
        history = self.history
        if not norm:
            return
        above, most = math.log(norm) - history.mean_log_norm, math.log(self._limits.growth)
        if history.norms >= FEWEST_NORMS:
            if above < -most:
                return
            above = min(above, most)
        history.norms += 1
        history.mean_log_norm += above / history.norms

    def _read_norm(self) -> float | None:
        """The largest norm that is not observed yet, NaN if one is; None without any."""
        norms = [float(norm) for norm in (self._unread, self.history.unread) if norm is not None]
        if any(norm < 0 or math.isnan(norm) for norm in norms):
            return math.nan
        return max(norms, default=None)

    def _excess(self, name: str, number: float) -> str | None:
        """The excess of a number over a limit, in words; None if it is within the limit."""
        limits = self._limits
        if name == "gradient":
            usual = math.exp(self.history.mean_log_norm)
            if self.history.norms >= FEWEST_NORMS and number > limits.growth * usual:
                return f"the gradient norm is {number:.3g}, over {limits.growth:g} times its usual {usual:.3g},"
        elif name == "values":
            if number > limits.values_above:
                range_ = f"largest value {number:.4g}, over values_above={limits.values_above:g}"
                return f"images or latents are out of range: {range_},"
            if self._images and number > IMAGES_ABOVE:
                range_ = f"largest value {number:.4g} of [-1, 1] before pixels are clamped"
                return f"images are out of range: {range_},"
        elif number < limits.opacity_below if name == "empty" else number > limits.opacity_above:
            return f"the scene is {name}: mean opacity {number:.4f}"
        return None

    def _lasts(self, name: str, step: int, since: int) -> bool:
        """Whether a limit is exceeded for long enough to stop; a scene or image must not end beyond its limits."""
        if name != "gradient" and step == self._steps and self._limits.after < 1:
            return True
        return step - max(since, self._first_step) >= self._window


def window_steps(window: float, steps: int) -> int:
    """The steps of ``train.diverged.window`` in a run of ``steps`` steps: at least 1."""
    # Rounded first: 0.07 * 100 is 7.000000000000001.
    return int(window) if window >= 1 else max(1, math.ceil(round(window * steps, 6)))


def first_step_cause(config: Config) -> str:
    """Why the first gradient is not finite, and the settings to change: the learning rate has had no effect yet."""
    model, precision = config.prior.model or config.prior.name, config.machine.precision
    remedy = "" if precision == "float32" else ", or set machine.precision=float32"
    return (
        f"the learning rate is not the cause, but prior.model={model} with machine.precision={precision}; "
        f"check the model's files and its prediction type{remedy}"
    )


@torch.no_grad()
def largest_value(generator: Generator) -> float | None:
    """The largest absolute value of latents, or of images scaled to [-1,1]; None for a scene.

    Synchronises with a GPU.
    """
    if not isinstance(generator, ImageGenerator):
        return None
    shown = generator.show()
    return _largest([shown.latent if isinstance(shown, Latents) else 2 * shown.image - 1])


def largest_parameter(generator: Generator) -> float:
    """The largest absolute value of all parameters, NaN if one is; synchronises with a GPU."""
    return _largest(parameter for group in generator.parameter_groups().values() for parameter in group)


@torch.no_grad()
def _largest(tensors: Iterable[Tensor]) -> float:
    # aminmax needs no temporary tensor of the parameters' size.
    bounds = [bound.abs().float() for tensor in tensors for bound in torch.aminmax(tensor)]
    return float(torch.stack(bounds).max())


def drop_unless_finite(optimizers: Sequence[torch.optim.Optimizer], norm: Tensor) -> None:
    """Sets all gradients to 0 unless ``norm``, a scalar, is finite; without host-device synchronisation."""
    bad = ~norm.isfinite()
    for gradient in gradients(*optimizers):
        gradient.masked_fill_(bad, 0.0)


def gradients(*optimizers: torch.optim.Optimizer) -> list[Tensor]:
    """The gradients of all parameters that have one."""
    groups = (group for optimizer in optimizers for group in optimizer.param_groups)
    return [parameter.grad for group in groups for parameter in group["params"] if parameter.grad is not None]
