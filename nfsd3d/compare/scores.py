"""Scores of a comparison's jobs, computed from images and finished runs."""

from typing import cast

from torch import Tensor

from nfsd3d.compare.records import SCORE_NAMES, Score
from nfsd3d.evaluate.classifier.alignment import Alignment, align
from nfsd3d.evaluate.classifier.model import Classifier
from nfsd3d.evaluate.score_scene import RunScore
from nfsd3d.shapes.world.grammar import Composition


def classifier_score(alignment: Alignment) -> Score:
    """The means over the images of an alignment."""
    return {"margin": float(alignment.margin.mean()), **alignment.shares()}


def image_score(images: Tensor, truth: Composition, classifier: Classifier) -> Score:
    """The score of images [N,3,H,W] in [0,1] that are classified one by one."""
    alignment = align(classifier.classify(images), [truth] * len(images))
    margins = [round(value, 4) for value in alignment.margin.tolist()]
    return {**classifier_score(alignment), "margins": margins}


def scene_score(score: RunScore) -> Score:
    """The outcomes among a run's scores."""
    values = {name: getattr(score, name) for name in SCORE_NAMES}
    return cast(Score, {name: None if value is None else float(value) for name, value in values.items()})
