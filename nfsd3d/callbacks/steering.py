"""Steering of a run while it trains: values that replace those of its schedules, and requests to pause, save or stop.

Every change is recorded with its step in ``metrics.jsonl``, ``summary.json`` and the checkpoints, so that a resumed run
goes on as it was steered.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from math import isfinite
from numbers import Real

from nfsd3d.errors import InputError

IDLE_S = 0.02
"""Seconds between two calls of ``idle`` in a pause."""


@dataclass(frozen=True)
class Steering:
    """What replaces a run's schedules.

    ``guidance_scale`` replaces s, ``t_min`` and ``t_max`` the range of the timesteps (fractions of the prior's training
    steps); None keeps the schedule. ``learning_rate_factor`` multiplies the learning rates.

    Raises:
        InputError: a value that no run can have.
    """

    guidance_scale: float | None = None
    learning_rate_factor: float = 1.0
    t_min: float | None = None
    t_max: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is None and name != "learning_rate_factor":
                continue
            try:
                number = -1.0 if isinstance(value, bool) or not isinstance(value, Real) else float(value)
            except OverflowError:
                number = -1.0
            object.__setattr__(self, name, number)
            if not isfinite(number) or number < 0:
                raise InputError(f"{name}={value!r}: cannot be steered to; give a finite number, 0 or more")
        if max(self.t_min or 0.0, self.t_max or 0.0) > 1:
            raise InputError(f"t_min={self.t_min}, t_max={self.t_max}: are fractions of training steps, in [0, 1]")
        if self.t_min is not None and self.t_max is not None and self.t_min > self.t_max:
            raise InputError(f"t_min={self.t_min:g}: is above t_max={self.t_max:g}; exchange them")

    def changes(self) -> dict[str, float | None]:
        """Those values that differ from a run's that is not steered."""
        return {item.name: value for item in fields(self) if (value := getattr(self, item.name)) != item.default}

    def record(self, step: int) -> dict[str, float | None]:
        """The values from the step after ``step`` on, as JSON has them."""
        return {"step": step, **asdict(self)}


class Controls:
    """The requests to a run that trains; every method may be called from another thread.

    Args:
        check: raises `InputError` if the run cannot be steered so.
        steering: as the run was steered before.
    """

    def __init__(
        self, check: Callable[[Steering], None] = lambda steering: None, steering: Steering | None = None
    ) -> None:
        self._check = check
        self._steering = steering or Steering()
        self._changed = threading.Condition()
        self._paused = self._one = self._save = self._stop = False

    @property
    def steering(self) -> Steering:
        """How the next step is steered."""
        return self._steering

    @property
    def paused(self) -> bool:
        """Whether the run waits."""
        return self._paused

    @property
    def stopped(self) -> bool:
        """Whether the run is to stop."""
        return self._stop

    def steer(self, **changes: float | None) -> None:
        """Changes some values of the `Steering` from the next step on.

        Raises:
            InputError: a value that no run, or not this one, can have.
            TypeError: no such value.
        """
        with self._changed:
            wanted = replace(self._steering, **changes)  # type: ignore[arg-type]
            self._check(wanted)
            self._steering = wanted

    def pause(self) -> None:
        """Lets the run wait before its next step."""
        self._set(_paused=True)

    def resume(self) -> None:
        """Ends the pause."""
        self._set(_paused=False)

    def step(self) -> None:
        """One step, and a pause."""
        self._set(_paused=True, _one=True)

    def save(self) -> None:
        """Saves a checkpoint before the next step."""
        self._set(_save=True)

    def stop(self) -> None:
        """Saves a checkpoint and ends the run as Ctrl-C does: it can be resumed."""
        self._set(_stop=True)

    def wait(self, idle: Callable[[], None], interrupted: Callable[[], bool]) -> bool:
        """Waits while the run is paused, with calls of ``idle``; returns whether a checkpoint is asked for."""
        while True:
            with self._changed:
                save, self._save = self._save, False
                if save or self._stop or interrupted():
                    return save
                if not self._paused or self._one:
                    self._one = False
                    return False
            idle()
            with self._changed:
                self._changed.wait(IDLE_S)

    def _set(self, **flags: bool) -> None:
        with self._changed:
            vars(self).update(flags)
            self._changed.notify_all()
