"""Divergence: when a run is stopped."""

import math

import pytest

from nfsd3d.config.schema import DivergedSettings
from nfsd3d.train.divergence import Watchdog

LIMITS = DivergedSettings(after=0.2, window=10, opacity_below=0.01, opacity_above=0.99)
STEPS = 100


def first_reason(opacities, limits=LIMITS, every=1):
    watchdog = Watchdog(limits, STEPS)
    for step, opacity in enumerate(opacities):
        reason = watchdog.observe(step, opacity, 1.0) if step % every == 0 else None
        if reason is not None:
            return step, reason
    return None, None


@pytest.mark.parametrize(("opacity", "word"), [(0.001, "empty"), (0.999, "full")])
@pytest.mark.parametrize("every", [1, 5])
def test_a_scene_beyond_a_limit_for_a_window_stops_the_run(opacity, word, every):
    step, reason = first_reason([0.5] * 40 + [opacity] * 40, every=every)
    assert step == 50 and word in reason and f"{opacity:.4f}" in reason


def test_limits_are_not_checked_before_their_first_step():
    step, _ = first_reason([0.0] * 40)
    assert step == 30  # the window starts at step 20


def test_a_scene_that_recovers_is_not_stopped():
    assert first_reason(([0.5] * 30 + [0.001] * 9) * 4) == (None, None)


def test_from_empty_to_full_starts_a_new_window():
    step, reason = first_reason([0.5] * 30 + [0.001] * 8 + [0.999] * 20)
    assert step == 48 and "full" in reason


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_metrics_stop_a_run_immediately(bad):
    assert "gradient norm" in Watchdog(LIMITS, STEPS).observe(0, 0.5, bad)
    assert "opacity" in Watchdog(LIMITS, STEPS).observe(0, bad, 1.0)


def test_finite_metrics_within_limits_do_not_stop_a_run():
    assert Watchdog(LIMITS, STEPS).observe(0, 0.5, 1e6) is None
