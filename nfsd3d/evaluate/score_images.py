"""Scores of a run with ``generator=latent|image``: the classifier on each of its images, and cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nfsd3d.evaluate.classifier.alignment import align
from nfsd3d.evaluate.classifier.model import Classifier
from nfsd3d.evaluate.ground_truth import composition_of

if TYPE_CHECKING:
    from nfsd3d.api import Run


@dataclass(frozen=True)
class ImageScore:
    """The score of a run of ``images`` images.

    ``object``, ``color``, ``pattern`` and ``retrieved`` are the shares of images in [0,1] (see
    ``alignment.Alignment``) and ``margin`` the median, in nats. ``seconds``, ``evaluations`` (NFE) and
    ``memory_mb`` (peak) come from ``summary.json``, None where it lacks them.
    """

    prompt: str
    method: str
    images: int
    object: float
    color: float
    pattern: float
    retrieved: float
    margin: float
    seconds: float | None
    evaluations: int | None
    memory_mb: float | None


def score_images(run: Run, classifier: Classifier) -> ImageScore:
    """The scores of ``run`` at its checkpoint.

    Raises:
        InputError: the prompt is not one of the world of shapes, or the run made no images.
    """
    truth = composition_of(run.config.prompt)
    images = image_tensor(run)
    alignment = align(classifier.classify(images), [truth] * len(images))
    summary = run.summary
    return ImageScore(
        prompt=run.config.prompt,
        method=summary.get("method", run.config.distill.method),
        images=len(images),
        **alignment.shares(),
        margin=float(alignment.margin.quantile(0.5)),
        seconds=summary.get("seconds"),
        evaluations=summary.get("network_evaluations"),
        memory_mb=summary.get("peak_memory_mb", {}).get("host"),
    )


def image_tensor(run: Run) -> Tensor:
    """[B,3,H,W] the images of a run in [0,1]."""
    return torch.from_numpy(run.images).permute(0, 3, 1, 2).float() / 255
