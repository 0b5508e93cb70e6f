"""Scores of a comparison's jobs, computed from images and finished runs."""

from torch import Tensor

from nfsd3d.compare.records import Score
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
    return {
        "margin": score.margin,
        "object": float(score.object),
        "color": float(score.color),
        "pattern": float(score.pattern),
        "retrieved": float(score.retrieved),
        "views_right": score.views_right,
        "iou": score.iou,
        "ellipsoid_iou": score.ellipsoid_iou,
        "view_error_deg": score.view_error_deg,
        "janus": None if score.janus is None else float(score.janus),
        "sharpness": score.sharpness,
        "contrast": score.contrast,
    }
