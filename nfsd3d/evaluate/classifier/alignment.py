"""Alignment of images with their prompts: attributes, R-Precision against hard distractors, margin and view."""

from dataclasses import dataclass, replace
from typing import TypedDict

import torch
from torch import Tensor

from nfsd3d.evaluate.classifier.model import Prediction
from nfsd3d.shapes.world.grammar import COLORS, PATTERNS, Composition
from nfsd3d.shapes.world.objects import OBJECTS

FRONT_DEG = 22.5
"""A view shows the front when its predicted azimuth is nearer to 0 than this, in degrees."""
JANUS_DEG = 60.0
"""Two views of the front whose cameras are further apart than this, in degrees, show the Janus problem."""


def distractors(truth: Composition) -> list[Composition]:
    """All compositions that differ from ``truth`` only in the object, the main colour or the pattern.

    Where the distractor's pattern is not "plain", each possible second colour is one distractor.
    """
    objects = [replace(truth, object=name) for name in OBJECTS if name != truth.object]
    colors = [replace(truth, color=name) for name in COLORS if name not in (truth.color, truth.second)]
    patterns = []
    for pattern in PATTERNS:
        if pattern == truth.pattern:
            continue
        if pattern == "plain":
            patterns.append(replace(truth, pattern=pattern, second=""))
            continue
        seconds = [truth.second] if truth.second else [name for name in COLORS if name != truth.color]
        patterns += [replace(truth, pattern=pattern, second=second) for second in seconds]
    return [*objects, *colors, *patterns]


class Shares(TypedDict):
    """Shares of images in [0,1] whose attribute is right, or that were ``retrieved`` (the R-Precision)."""

    object: float
    color: float
    pattern: float
    retrieved: float


@dataclass(frozen=True)
class Alignment:
    """The alignment of B images with their prompts; all fields are tensors [B].

    ``object``, main ``color`` and ``pattern``: whether they are right. ``retrieved``: whether the truth beats every
    distractor. ``margin``: the truth's log-probability minus the best distractor's, in nats.
    """

    object: Tensor
    color: Tensor
    pattern: Tensor
    retrieved: Tensor
    margin: Tensor

    def shares(self) -> Shares:
        """The shares of the images for which each field holds."""
        fields = (self.object, self.color, self.pattern, self.retrieved)
        object, color, pattern, retrieved = (float(right.float().mean()) for right in fields)
        return Shares(object=object, color=color, pattern=pattern, retrieved=retrieved)


def align(prediction: Prediction, truths: list[Composition]) -> Alignment:
    """The alignment of each image with its own composition in ``truths`` [B].

    Raises ValueError when the numbers of images and compositions differ.
    """
    if len(prediction) != len(truths):
        raise ValueError(f"{len(prediction)} images for {len(truths)} compositions")
    margins = [_margin(prediction[i : i + 1], truth) for i, truth in enumerate(truths)]
    margin = prediction.object.new_tensor(margins)
    return Alignment(**prediction.right(truths), retrieved=margin > 0, margin=margin)


def _margin(prediction: Prediction, truth: Composition) -> float:
    scores = prediction.log_likelihood([truth, *distractors(truth)])[0]
    return float(scores[0] - scores[1:].max())


def view_errors(prediction: Prediction, azimuth: Tensor) -> tuple[float, bool]:
    """The median angle in degrees between the camera's azimuth and the predicted one, and whether the Janus problem
    occurs: the front shows at two azimuths more than ``JANUS_DEG`` apart. ``azimuth`` [B] is in radians.
    """
    seen, taken = prediction.azimuths_deg(), torch.rad2deg(azimuth)
    fronts = taken[seen.abs() < FRONT_DEG]
    apart = _angle(fronts[:, None] - fronts[None, :])
    return float(_angle(seen - taken).median()), bool((apart > JANUS_DEG).any())


def _angle(degrees: Tensor) -> Tensor:
    return ((degrees + 180) % 360 - 180).abs()
