import pytest

from nfsd3d.errors import InputError
from nfsd3d.settings.schedules import crossing, milestone_at, validate_milestones, validate_schedule, value_at


def test_constant_everywhere():
    assert value_at(3, 0.0) == value_at(3, 1.0) == 3.0
    assert milestone_at(64, 0.7) == 64


@pytest.mark.parametrize(
    ("progress", "expected"), [(0.0, 1.0), (0.2, 1.0), (0.4, 2.0), (0.6, 3.0), (0.9, 3.0), (1.0, 3.0)]
)
def test_linear_between_knots_and_clamped_outside(progress, expected):
    assert value_at([(0.2, 1.0), (0.6, 3.0)], progress) == pytest.approx(expected)


def test_jump_takes_the_later_knot_from_its_fraction_on():
    schedule = [(0.0, 0.0), (0.5, 1.0), (0.5, 10.0), (1.0, 20.0)]
    assert value_at(schedule, 0.5 - 1e-9) == pytest.approx(1.0)
    assert value_at(schedule, 0.5) == 10.0
    assert value_at(schedule, 0.75) == pytest.approx(15.0)


def test_jumps_at_both_ends():
    schedule = [(0.0, 5.0), (0.0, 1.0), (1.0, 2.0), (1.0, 7.0)]
    assert value_at(schedule, 0.0) == 1.0
    assert value_at(schedule, 0.5) == pytest.approx(1.5)
    assert value_at(schedule, 1.0) == 7.0


@pytest.mark.parametrize(
    ("low", "high", "where"),
    [
        (0.2, 0.5, None),
        (0.5, 0.2, 0.0),
        ([(0.0, 0.1), (1.0, 0.4)], 0.3, 1.0),
        ([(0.0, 0.3), (0.5, 0.1)], [(0.0, 0.9), (0.2, 0.9), (0.2, 0.2)], 0.2),  # though never below its lowest value
        ([(0.0, 0.1), (0.6, 0.5), (0.6, 0.0)], [(0.0, 0.4), (0.6, 0.4)], 0.6),  # only just before the jump
        (0.1, [(0.0, 0.8), (0.2, 0.1)], None),  # they touch
        ([(0.0, 0.9), (0.0, 0.1)], 0.5, None),  # what a jump at the start leaves never counts
    ],
)
def test_schedules_that_cross(low, high, where):
    assert crossing(low, high) == where


def test_milestones_are_piecewise_constant():
    milestones = [(0.0, 32), (0.25, 48), (0.5, 64)]
    assert [milestone_at(milestones, p) for p in (0.0, 0.24, 0.25, 0.49, 0.5, 1.0)] == [32, 32, 48, 48, 64, 64]


@pytest.mark.parametrize(
    ("schedule", "complaint"),
    [
        ([], "at least one knot"),
        ([(1.5, 1.0)], "outside"),
        ([(0.5, 1.0), (0.2, 1.0)], "must not decrease"),
        ([(0.0, float("nan"))], "finite"),
        (float("inf"), "finite"),
        (-0.5, r"\[0, 1\]"),
        ([(0.0, 0.5), (1.0, 2.0)], r"\[0, 1\]"),
    ],
)
def test_bad_schedules_name_the_setting(schedule, complaint):
    with pytest.raises(InputError, match=complaint) as error:
        validate_schedule(schedule, "train.t_max", low=0, high=1)
    assert str(error.value).startswith("train.t_max")


def test_good_schedules_pass_unchanged():
    schedule = [(0.0, 0.98), (0.5, 0.98), (0.5, 0.5)]
    assert validate_schedule(schedule, "train.t_max", low=0, high=1) is schedule
    assert validate_milestones(64, "train.resolution") == 64


@pytest.mark.parametrize(
    ("milestones", "complaint"),
    [([(0.3, 64)], "fraction 0"), ([(0.0, 64), (0.5, 0)], "at least 1"), (-1, "at least 1"), ([], "at least one knot")],
)
def test_bad_milestones_name_the_setting(milestones, complaint):
    with pytest.raises(InputError, match=complaint) as error:
        validate_milestones(milestones, "train.resolution")
    assert str(error.value).startswith("train.resolution")
