"""Calibration of the classifier: accuracy on true renders, on reconstructions of them, and with wrong prompts."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from nfsd3d.evaluate.classifier.alignment import align, view_errors
from nfsd3d.evaluate.classifier.model import WEIGHTS, Classifier
from nfsd3d.evaluate.classifier.training import SEED, Truth, plain_backgrounds, random_composition
from nfsd3d.prior.base import Prior
from nfsd3d.runs.files import write_json
from nfsd3d.shapes.world.grammar import VIEWS, Composition
from nfsd3d.shapes.world.objects import OBJECTS

STORED = WEIGHTS.with_name("calibration.json")


@dataclass(frozen=True)
class Calibration:
    """Accuracies in [0,1] over ``images``: ``object``, main ``color``, ``pattern``, the word of the ``view`` (for
    objects with a front), ``retrieved`` among all distractors; and the median error of the azimuth in degrees.
    """

    images: int
    object: float
    color: float
    pattern: float
    view: float
    retrieved: float
    azimuth_error_deg: float


def calibrate(
    classifier: Classifier, truth: Truth, change: Callable[[Tensor], Tensor] = lambda images: images
) -> Calibration:
    """The classifier's calibration on unseen true renders over plain colours, after ``change`` (of [N,3,64,64])."""
    rng = torch.Generator().manual_seed(SEED + 1)
    images = change(truth.over(plain_backgrounds(rng, truth.compositions)))
    return _calibration(classifier, truth, images, truth.compositions)


def calibrate_mismatched(classifier: Classifier, truth: Truth) -> Calibration:
    """The same images against random other compositions: the chance level."""
    rng = torch.Generator().manual_seed(SEED + 2)
    names = list(OBJECTS)
    draws = torch.randint(len(names), (len(truth),), generator=rng).tolist()
    others: list[Composition] = [random_composition(rng, names[i]) for i in draws]
    images = truth.over(plain_backgrounds(rng, truth.compositions))
    return _calibration(classifier, truth, images, others)


def calibrate_all(classifier: Classifier, truth: Truth, prior: Prior) -> dict[str, Calibration]:
    """The calibration rows of every table, by name; the reconstructions are by the autoencoder of ``prior``."""

    def reconstructed(images: Tensor) -> Tensor:
        with torch.no_grad():
            parts = [prior.decode(prior.encode(part.to(prior.device))).cpu() for part in images.split(64)]
        return torch.cat(parts).clamp(0, 1)

    return {
        "unseen true renders": calibrate(classifier, truth),
        "the same through the prior's autoencoder": calibrate(classifier, truth, reconstructed),
        "the same with wrong prompts (chance)": calibrate_mismatched(classifier, truth),
    }


def _calibration(classifier: Classifier, truth: Truth, images: Tensor, compositions: list[Composition]) -> Calibration:
    prediction = classifier.classify(images)
    alignment = align(prediction, compositions)
    front = torch.tensor([OBJECTS[composition.object].has_front for composition in truth.compositions])
    named = front | (truth.view == VIEWS.index("overhead"))
    error, _ = view_errors(prediction[front], truth.azimuth[front])
    return Calibration(
        images=len(images),
        **alignment.shares(),
        view=float((prediction.view.argmax(-1) == truth.view)[named].float().mean()),
        azimuth_error_deg=error,
    )


def save_calibration(rows: Mapping[str, Calibration], path: Path = STORED) -> None:
    """Writes calibrations, by name, to the folder of the classifier's weights."""
    write_json(path, {name: asdict(row) for name, row in rows.items()})


def load_calibration(path: Path = STORED) -> dict[str, Calibration]:
    """The calibrations of the trained classifier, by name."""
    return {name: Calibration(**row) for name, row in json.loads(path.read_text(encoding="utf-8")).items()}
