"""Calibration of the classifier: accuracy on true renders, on decoded latents of them, and with wrong prompts."""

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
    """Shares in [0,1] that the classifier finds right: ``object``, main ``color``, ``pattern``, the word of the
    ``view`` (where it means something), ``retrieved`` among all distractors; and the median error of the azimuth in
    degrees, over ``images``.
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
    """The classifier on unseen true renders before plain backgrounds, after ``change`` ([N,3,64,64] to the same)."""
    rng = torch.Generator().manual_seed(SEED + 1)
    images = change(truth.over(plain_backgrounds(rng, truth.compositions)))
    return _calibration(classifier, truth, images, truth.compositions)


def calibrate_mismatched(classifier: Classifier, truth: Truth) -> Calibration:
    """The same images judged against random other compositions: what a classifier without knowledge reaches."""
    rng = torch.Generator().manual_seed(SEED + 2)
    names = list(OBJECTS)
    draws = torch.randint(len(names), (len(truth),), generator=rng).tolist()
    others: list[Composition] = [random_composition(rng, names[i]) for i in draws]
    images = truth.over(plain_backgrounds(rng, truth.compositions))
    return _calibration(classifier, truth, images, others)


def calibrate_all(classifier: Classifier, truth: Truth, prior: Prior) -> dict[str, Calibration]:
    """The rows that stand beside every table, by name; ``prior`` lends its autoencoder."""

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
    """Keeps calibrations, by name, beside the classifier's weights."""
    write_json(path, {name: asdict(row) for name, row in rows.items()})


def load_calibration(path: Path = STORED) -> dict[str, Calibration]:
    """The calibrations that were measured when the classifier was trained, by name."""
    return {name: Calibration(**row) for name, row in json.loads(path.read_text(encoding="utf-8")).items()}
