"""Schedules: values that change over training, as pure functions of the progress in [0, 1].

A schedule is a constant or a list of knots ``[fraction of training, value]``. Fractions instead of steps keep its shape
in a run of another length.
"""

import math
from bisect import bisect_right

from nfsd3d.errors import InputError

Schedule = float | list[tuple[float, float]]
Milestones = int | list[tuple[float, int]]


def value_at(schedule: Schedule, progress: float) -> float:
    """The schedule's value at ``progress``: linear between knots, constant before the first and after the last.

    Two knots at the same fraction are a jump; the later one counts from that fraction on.
    """
    if isinstance(schedule, int | float):
        return float(schedule)
    after = bisect_right([fraction for fraction, _ in schedule], progress)
    if after == 0:
        return float(schedule[0][1])
    if after == len(schedule):
        return float(schedule[-1][1])
    (start, low), (end, high) = schedule[after - 1], schedule[after]
    return low + (high - low) * (progress - start) / (end - start)


def milestone_at(milestones: Milestones, progress: float) -> int:
    """The value of the last knot at or before ``progress``; the first knot's before that."""
    if isinstance(milestones, int):
        return milestones
    after = bisect_right([fraction for fraction, _ in milestones], progress)
    return milestones[max(after - 1, 0)][1]


def highest(schedule: Schedule | Milestones) -> float:
    """The largest value that a schedule has anywhere."""
    return max(value for _, value in schedule) if isinstance(schedule, list) else schedule


def crossing(low: Schedule, high: Schedule) -> float | None:
    """The first knot's fraction at which, or just before which, ``high`` lies below ``low``; None if there is none."""
    knots = {fraction for schedule in (low, high) if isinstance(schedule, list) for fraction, _ in schedule}
    for fraction in sorted(knots | {0.0, 1.0}):
        for moment in (max(math.nextafter(fraction, -1.0), 0.0), fraction):
            if value_at(high, moment) < value_at(low, moment) - 1e-9:  # equality up to rounding is allowed
                return fraction
    return None


def validate_schedule(schedule: Schedule, setting: str, low: float = -math.inf, high: float = math.inf) -> Schedule:
    """``schedule`` itself; ``low`` and ``high`` bound its values (inclusive).

    Raises:
        InputError: no knots, fractions outside [0, 1] or not in order, a value that is not finite or out of bounds.
            The message begins with ``setting``.
    """
    if isinstance(schedule, int | float):
        values = [float(schedule)]
    else:
        _validate_fractions([fraction for fraction, _ in schedule], setting)
        values = [float(value) for _, value in schedule]
    for value in values:
        if not (math.isfinite(value) and low <= value <= high):
            raise InputError(f"{setting}={schedule}: {value:g} must be a finite number in [{low:g}, {high:g}]")
    return schedule


def validate_milestones(milestones: Milestones, setting: str, low: int = 1) -> Milestones:
    """``milestones`` itself; the first must stand at fraction 0, and every value be at least ``low``.

    Raises:
        InputError: as :func:`validate_schedule`; the message begins with ``setting``.
    """
    if isinstance(milestones, int):
        values = [milestones]
    else:
        fractions = [fraction for fraction, _ in milestones]
        _validate_fractions(fractions, setting)
        if fractions[0] != 0:
            raise InputError(f"{setting}={milestones}: the first milestone must be at fraction 0, not {fractions[0]:g}")
        values = [value for _, value in milestones]
    for value in values:
        if value < low:
            raise InputError(f"{setting}={milestones}: {value} must be at least {low}")
    return milestones


def _validate_fractions(fractions: list[float], setting: str) -> None:
    if not fractions:
        raise InputError(f"{setting}=[]: give a number, or at least one knot [fraction of training, value]")
    for fraction in fractions:
        if not 0 <= fraction <= 1:
            raise InputError(f"{setting}: fraction {fraction:g} is outside [0, 1] (knots are [fraction, value])")
    if sorted(fractions) != list(fractions):
        raise InputError(f"{setting}: fractions {fractions} must not decrease")
