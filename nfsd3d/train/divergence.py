"""Divergence: non-finite gradients are dropped; a run with non-finite numbers or an empty or full scene is stopped.

Non-finite gradients on a GPU.
Problem: reading a number synchronises host and device, so a GPU's gradient norm is read at logged steps only. By then
a NaN would have spread through all parameters.
Idea: :func:`drop_unless_finite` decides on the GPU. A gradient whose norm is not finite becomes 0, so the parameters
stay finite. The largest norm since the last reading reveals it at the next logged step.
Measurement: tests/train/test_host_device_sync.py counts no synchronisation outside of the samplers; a CPU run reads
every norm immediately.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nfsd3d.config.schema import DivergedSettings
from nfsd3d.generators.base import Generator


class Diverged(Exception):
    """The run cannot recover; the message gives the reason and the settings to change."""


class Watchdog:
    """Checks the metrics of a run of ``steps`` steps against ``limits``; final."""

    def __init__(self, limits: DivergedSettings, steps: int) -> None:
        self._limits = limits
        self._first_step = math.ceil(limits.after * steps)
        self._state = "normal"
        self._since = 0

    def observe(self, step: int, opacity: float | None, grad_norm: float) -> str | None:
        """The reason to stop, or None; call with increasing steps (the first is 1), every step or every few.

        ``opacity`` is None for generators without one (images, latents).
        """
        for name, value in (("gradient norm", grad_norm), ("opacity", opacity)):
            if value is not None and not math.isfinite(value):
                return f"the {name} is {value} at step {step}: lower train.learning_rate or set train.gradient_clip"
        if opacity is None:
            return None
        state = self._classify(opacity)
        if state != self._state:
            self._state, self._since = state, step
        since = max(self._since, self._first_step)
        if state == "normal" or step - since < self._limits.window:
            return None
        remedy = {
            "empty": "lower train.regularizers.sparsity or raise generator.density_blob_scale",
            "full": "raise train.regularizers.sparsity or lower train.learning_rate",
        }[state]
        return f"the scene is {state}: mean opacity {opacity:.4f} since step {since}; {remedy}"

    def _classify(self, opacity: float) -> str:
        if opacity < self._limits.opacity_below:
            return "empty"
        return "full" if opacity > self._limits.opacity_above else "normal"


def drop_unless_finite(optimizers: Sequence[torch.optim.Optimizer], norm: Tensor) -> None:
    """Sets all gradients to 0 unless ``norm``, a scalar, is finite; without host-device synchronisation."""
    bad = ~norm.isfinite()
    for gradient in gradients(*optimizers):
        gradient.masked_fill_(bad, 0.0)


def gradients(*optimizers: torch.optim.Optimizer) -> list[Tensor]:
    """The gradients of all parameters that have one."""
    groups = (group for optimizer in optimizers for group in optimizer.param_groups)
    return [parameter.grad for group in groups for parameter in group["params"] if parameter.grad is not None]


def all_finite(generator: Generator) -> bool:
    """Whether all parameters are finite."""
    tensors = [parameter for group in generator.parameter_groups().values() for parameter in group]
    return bool(torch.stack([tensor.detach().isfinite().all() for tensor in tensors]).all())
