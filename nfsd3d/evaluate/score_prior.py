"""Quality of a prior of the world of shapes: reconstruction PSNR, and the classifier on its samples."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nfsd3d.evaluate.classifier.alignment import align
from nfsd3d.evaluate.classifier.model import Classifier
from nfsd3d.prior.base import Prior
from nfsd3d.prior.sampling import ddim_sample
from nfsd3d.shapes.world.grammar import VIEWS, Composition, held_out
from nfsd3d.shapes.world.objects import OBJECTS

GUIDANCE_SCALES = (3.0, 5.0, 7.5)
SAMPLING_STEPS = 30


@dataclass(frozen=True)
class SampleQuality:
    """The quality of ``images`` samples at one guidance scale: shares in [0,1].

    ``object``, ``color``, ``pattern`` and ``retrieved`` are those of ``alignment.Shares``; ``view`` is the share that
    shows the requested view, among objects with a front.
    """

    guidance_scale: float
    images: int
    object: float
    color: float
    pattern: float
    retrieved: float
    view: float


@torch.no_grad()
def reconstruction_psnr(prior: Prior, images: Tensor, batch: int = 64) -> float:
    """The mean over images [N,3,H,W] in [0,1] of the peak signal-to-noise ratio in dB after encoding and decoding."""
    ratios = []
    for part in images.split(batch):
        decoded = prior.decode(prior.encode(part.to(prior.device))).cpu()
        ratios.append(-10 * (part - decoded).square().mean((1, 2, 3)).log10())
    return float(torch.cat(ratios).mean())


def held_out_requests() -> list[tuple[Composition, str]]:
    """Every held-out composition without a view word (""), and with four (with a front) or two of them."""
    requests = [(composition, "") for composition in held_out()]
    for composition in held_out():
        views = VIEWS if OBJECTS[composition.object].has_front else ("front", "overhead")
        requests += [(composition, view) for view in views]
    return requests


def sample_quality(
    prior: Prior,
    classifier: Classifier,
    guidance_scale: float,
    seed: int = 0,
    batch: int = 64,
    on_images: Callable[[int], None] = lambda count: None,
) -> tuple[SampleQuality, Tensor]:
    """The classifier on one DDIM sample for each of ``held_out_requests``, and the samples [N,3,H,W] in [0,1].

    ``on_images`` is called with the size of each batch.
    """
    requests = held_out_requests()
    rng = torch.Generator().manual_seed(seed)
    images = []
    for start in range(0, len(requests), batch):
        part = requests[start : start + batch]
        cond = prior.embed([f"{c.prompt}, {view} view" if view else c.prompt for c, view in part])
        z = ddim_sample(prior, cond, prior.embed([""]), guidance_scale=guidance_scale, steps=SAMPLING_STEPS, rng=rng)
        images.append(prior.decode(z).clamp(0, 1).cpu())
        on_images(len(part))
    samples = torch.cat(images)
    prediction = classifier.classify(samples)
    alignment = align(prediction, [composition for composition, _ in requests])
    asked = [i for i, (c, view) in enumerate(requests) if view and OBJECTS[c.object].has_front]
    seen = prediction.views()
    quality = SampleQuality(
        guidance_scale=guidance_scale,
        images=len(samples),
        **alignment.shares(),
        view=sum(seen[i] == requests[i][1] for i in asked) / len(asked),
    )
    return quality, samples
