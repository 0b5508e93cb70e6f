"""Regularisers of a rendering: scalars that are weighted and added to the loss."""

from collections.abc import Callable

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


def at_least_one(count: Tensor) -> Tensor:
    """``count``, a scalar, or 1 in place of 0: a divisor."""
    return count.clamp(min=1)


def orient(orientation: Tensor, opacity: Tensor, divisor: Callable[[Tensor], Tensor] = at_least_one) -> Tensor:
    """Mean over hit pixels of sum_i w_i relu(n_i . d)^2: no normal may point away from the camera (2112.03907, eq. 11).

    ``orientation`` is that sum as the renderer composites it, with the weights w detached; a pixel is hit when its
    ray met occupied space. 0 when no pixel is. ``divisor``: see :func:`penalty`.
    """
    return orientation.sum() / divisor((opacity > 0).sum())


def z_variance(depth_variance: Tensor, opacity: Tensor, divisor: Callable[[Tensor], Tensor] = at_least_one) -> Tensor:
    """Mean variance of depth along the rays of opacity above one half: thin surfaces (HiFA, 2305.18766, eq. 10).

    0 when there are no such rays. ``divisor``: see :func:`penalty`.
    """
    solid = (opacity > 0.5).to(depth_variance.dtype)
    return (depth_variance * solid).sum() / divisor(solid.sum())


def penalty(
    rendering: Rendering, weights: dict[str, float], divisor: Callable[[Tensor], Tensor] = at_least_one
) -> Tensor:
    """The sum of the regularisers weighted by ``weights`` (keys sparsity, opaque, orient, z_variance; 0 skips one).

    ``divisor`` makes the divisor of a mean of a number of pixels: of the views of other processes, too, where these
    share a batch (`nfsd3d.train.ranks.Ranks.divisor`).

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
        total = total + weights["orient"] * orient(rendering.orientation, rendering.opacity, divisor)
    if weights["z_variance"]:
        total = total + weights["z_variance"] * z_variance(rendering.depth_variance, rendering.opacity, divisor)
    return total
