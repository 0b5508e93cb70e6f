"""Constrained types of settings, as pydantic annotations.

A component's settings are one frozen dataclass in a torch-free file of its package. Each field has a type from here and
a one-line docstring with what it sets, its unit and the effect of more or less. `nfsd3d.config.schema.Config` holds the
dataclasses and validates values against the annotations. A dataclass that is built directly is not validated.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated

from pydantic import (
    AfterValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    PositiveFloat,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from nfsd3d.settings.schedules import Milestones, Schedule, validate_milestones, validate_schedule


def is_number(value: object) -> bool:
    """Whether ``value`` is an integer or a float; true and false are neither."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_knots(value: object, is_value: Callable[[object], bool], noun: str) -> object:
    """A constant unchanged, or a list of (fraction of training, value) knots; only types are checked."""
    if is_value(value):
        return value
    if not isinstance(value, list | tuple):
        raise PydanticCustomError("knots", "must be {noun} or a list of [fraction of training, value]", {"noun": noun})
    knots = []
    for knot in value:
        if not isinstance(knot, list | tuple) or len(knot) != 2 or not is_number(knot[0]) or not is_value(knot[1]):
            raise PydanticCustomError("knots", "each knot must be [fraction of training, {noun}]", {"noun": noun})
        knots.append((float(knot[0]), knot[1]))
    return knots


def described_type(text: str) -> WithJsonSchema:
    """Annotation that replaces a type's JSON schema by ``text``, for types that pydantic cannot describe."""
    return WithJsonSchema({"description": text})


UNCHANGED = PlainSerializer(lambda value: value)
"""Serialiser of a field whose type only a validator of its own knows."""


def _over_training(
    validate: Callable[..., object], is_value: Callable[[object], bool], noun: str, text: str
) -> tuple[PlainValidator, PlainSerializer, WithJsonSchema]:
    """Annotations of a constant or knots that ``validate`` checks; ``noun`` is a value in words, ``text`` the type."""

    def check(value: object, info: ValidationInfo) -> object:
        knots = _check_knots(value, is_value, noun)
        try:
            return validate(knots, info.field_name or "")
        except ValueError as error:
            raise PydanticCustomError("schedule", "{text}", {"text": str(error)}) from error

    return PlainValidator(check), UNCHANGED, described_type(text)


def _schedule(low: float, high: float, bounds: str) -> tuple[PlainValidator, PlainSerializer, WithJsonSchema]:
    validate = partial(validate_schedule, low=low, high=high)
    return _over_training(validate, is_number, "a number", f"number or schedule, {bounds}")


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise PydanticCustomError("range", "must be [low, high] with low <= high")
    return bounds


def _check_window(value: object) -> object:
    if isinstance(value, int | float) and is_number(value) and (0 < value < 1 or (_is_whole(value) and value >= 1)):
        return value
    raise PydanticCustomError("window", "must be a fraction of the run between 0 and 1, or a whole number of steps")


def _check_even(value: int) -> int:
    if value % 2:
        raise PydanticCustomError("even", "must be even (video frames are)")
    return value


def _check_names(value: object) -> object:
    values = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(name, str) and name for name in values):
        raise PydanticCustomError("names", "must be text or a list of texts")
    return value


Name = Annotated[str, Field(min_length=1)]
Names = Annotated[
    str | tuple[str, ...], PlainValidator(_check_names), UNCHANGED, described_type("text, or a list of texts")
]
Fraction = Annotated[float, Field(ge=0, le=1)]
FractionSchedule = Annotated[Schedule, *_schedule(0.0, 1.0, "in [0, 1]")]
WeightSchedule = Annotated[Schedule, *_schedule(0.0, math.inf, ">= 0")]
ImageSizes = Annotated[
    Milestones,
    *_over_training(
        partial(validate_milestones, low=8), _is_whole, "a whole number", "whole number or milestones, >= 8"
    ),
]
Even = AfterValidator(_check_even)
Window = Annotated[
    float, PlainValidator(_check_window), UNCHANGED, described_type("number in (0, 1), or whole number >= 1")
]
"""A duration in training: below 1 a fraction of the run, from 1 on a number of steps."""

Degrees180 = Annotated[float, Field(ge=0, le=180)]
ElevationDeg = Annotated[float, Field(ge=-90, le=90)]
_FieldOfViewDeg = Annotated[float, Field(gt=0, lt=180)]
_AzimuthDeg = Annotated[float, Field(ge=-360, le=360)]

PositiveRange = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_ordered)]
ElevationRange = Annotated[tuple[ElevationDeg, ElevationDeg], AfterValidator(_ordered)]
FieldOfViewRange = Annotated[tuple[_FieldOfViewDeg, _FieldOfViewDeg], AfterValidator(_ordered)]
AzimuthRange = Annotated[tuple[_AzimuthDeg, _AzimuthDeg], AfterValidator(_ordered)]
