"""One run of pictures against its prompt: what the classifier sees in each of them, and what they cost."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nfsd3d.api import Run
from nfsd3d.evaluate.classifier.alignment import align
from nfsd3d.evaluate.classifier.model import Classifier
from nfsd3d.evaluate.ground_truth import composition_of


@dataclass(frozen=True)
class ImageScore:
    """What the ``images`` pictures of a run, or of several, reached.

    ``object``, ``color``, ``pattern`` and ``retrieved`` are the shares of pictures in [0,1] (see
    ``alignment.Alignment``) and ``margin`` the median, in nats. ``seconds``, ``evaluations`` (of the denoiser) and
    ``memory_mb`` (peak) are a run's own records, None where it has none.
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
        InputError: the prompt is not one of the world of shapes, or the run made no pictures.
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
    """[B,3,H,W] the pictures of a run in [0,1]."""
    return torch.from_numpy(run.images).permute(0, 3, 1, 2).float() / 255
