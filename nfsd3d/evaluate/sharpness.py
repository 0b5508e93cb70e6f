"""Sharpness and contrast of a run's views, as ratios to true views from the same cameras."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Appearance:
    """Ratios to the true views, 1 where they agree.

    ``sharpness``: of the root mean square difference between neighbouring pixels of the object (the mean difference
    over a soft edge is that over a sharp one; the square is not). ``contrast``: of the standard deviation of the
    object's luminance.
    """

    sharpness: float
    contrast: float


def compare_appearance(images: Tensor, opacity: Tensor, true_images: Tensor, true_mask: Tensor) -> Appearance:
    """Of images [B,3,H,W] in [0,1] with ``opacity`` [B,1,H,W], against true images with their masks.

    Statistics are over each image's own object (opacity above one half). Without any such pixel both are 0.
    """
    sharpness, contrast = _statistics(images, opacity)
    true_sharpness, true_contrast = _statistics(true_images, true_mask)
    return Appearance(sharpness / true_sharpness, contrast / true_contrast)


def luminance(images: Tensor) -> Tensor:
    """[B,1,H,W] the luma of images [B,3,H,W] (ITU-R BT.601)."""
    return (images * images.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)


def _statistics(images: Tensor, opacity: Tensor) -> tuple[float, float]:
    brightness = luminance(images)[:, 0]
    inside = opacity[:, 0] > 0.5
    if int(inside.sum()) < 2:
        return 0.0, 0.0
    across = (brightness[:, :, 1:] - brightness[:, :, :-1]).square()[inside[:, :, 1:] & inside[:, :, :-1]]
    down = (brightness[:, 1:] - brightness[:, :-1]).square()[inside[:, 1:] & inside[:, :-1]]
    differences = torch.cat([across, down])
    return float(differences.mean().sqrt()) if len(differences) else 0.0, float(brightness[inside].std())
