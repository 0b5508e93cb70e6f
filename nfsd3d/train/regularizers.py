"""Regularisers of a rendering: scalars that are weighted and added to the loss."""

import torch
from torch import Tensor

from nfsd3d.generators.base import Rendering


def sparsity(opacity: Tensor) -> Tensor:
    """mean sqrt(opacity^2 + .01): pulls every pixel towards empty (DreamFusion, 2209.14988)."""
    return (opacity.square() + 0.01).sqrt().mean()


def opaque(opacity: Tensor) -> Tensor:
    """Binary entropy of the opacity (in nats, clamped to [1e-3, 1 - 1e-3]): pushes pixels to empty or solid."""
    p = opacity.clamp(1e-3, 1 - 1e-3)
    return -(p * p.log() + (1 - p) * (1 - p).log()).mean()


def orient(orientation: Tensor, opacity: Tensor) -> Tensor:
    """Mean over hit pixels of sum_i w_i relu(n_i . d)^2: no normal may point away from the camera (2112.03907, eq. 11).

    ``orientation`` is that sum as the renderer composites it, with the weights w detached; a pixel is hit when its
    ray met occupied space. 0 when no pixel is.
    """
    return orientation.sum() / (opacity > 0).sum().clamp(min=1)


def z_variance(depth_variance: Tensor, opacity: Tensor) -> Tensor:
    """Mean variance of depth along the rays of opacity above one half: thin surfaces (HiFA, 2305.18766, eq. 10).

    0 when there are no such rays.
    """
    solid = (opacity > 0.5).to(depth_variance.dtype)
    return (depth_variance * solid).sum() / solid.sum().clamp(min=1)


def penalty(rendering: Rendering, weights: dict[str, float]) -> Tensor:
    """The sum of the regularisers weighted by ``weights`` (keys sparsity, opaque, orient, z_variance; 0 skips one).

    Raises:
        ValueError: the orientation penalty has a weight, and ``rendering`` has no normals.
    """
    total = torch.zeros((), device=rendering.opacity.device)
    if weights["sparsity"]:
        total = total + weights["sparsity"] * sparsity(rendering.opacity)
    if weights["opaque"]:
        total = total + weights["opaque"] * opaque(rendering.opacity)
    if weights["orient"]:
        if rendering.orientation is None:
            raise ValueError("the orientation penalty needs a rendering with normals")
        total = total + weights["orient"] * orient(rendering.orientation, rendering.opacity)
    if weights["z_variance"]:
        total = total + weights["z_variance"] * z_variance(rendering.depth_variance, rendering.opacity)
    return total
