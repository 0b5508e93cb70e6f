"""Detection of divergence: metrics that are not finite, an empty scene, or a scene filled with density."""

import math

from nfsd3d.config.schema import DivergedSettings


class Watchdog:
    """Checks the logged metrics of a run of ``steps`` steps against ``limits``."""

    def __init__(self, limits: DivergedSettings, steps: int) -> None:
        self._limits = limits
        self._first_step = math.ceil(limits.after * steps)
        self._state = "normal"
        self._since = 0

    def observe(self, step: int, opacity: float | None, grad_norm: float) -> str | None:
        """The reason to stop, or None; call with increasing steps (the first is 1), every step or every few.

        Images have no ``opacity``.
        """
        for name, value in (("gradient norm", grad_norm), ("opacity", opacity)):
            if value is not None and not math.isfinite(value):
                return f"the {name} is {value} at step {step}: lower train.learning_rate or set train.gradient_clip"
        if opacity is None:
            return None
        state = self._state_of(opacity)
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

    def _state_of(self, opacity: float) -> str:
        if opacity < self._limits.opacity_below:
            return "empty"
        return "full" if opacity > self._limits.opacity_above else "normal"
