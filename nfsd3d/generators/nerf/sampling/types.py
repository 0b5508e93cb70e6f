"""The interface of a ray-marching backend: what ``sample_rays`` passes to it, and what it returns."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from nfsd3d.generators.nerf.occupancy import OccupancyGrid


@dataclass(frozen=True)
class Lines:
    """R rays, the part of each inside the cube, and where on it the first sample is.

    ``near``, ``far`` [R]: distances at which a ray enters (0 if it starts inside) and leaves the cube; far <= near if
    it misses. ``shift`` [R] in (0,1]: the first sample is ``shift`` steps behind ``near``.
    """

    origins: Tensor
    directions: Tensor
    near: Tensor
    far: Tensor
    shift: Tensor


Fill = Callable[[int], tuple[Tensor, Tensor]]
"""The second pass: the ray indices [S] int64 and the middles [S] of S packed samples."""

March = Callable[[Lines, float, OccupancyGrid], tuple[Tensor, Fill]]
"""The first pass: for lines and a step length, the offsets [R + 1] of the packed samples, and the second pass.

The caller reads S = offsets[-1] once, because reading it synchronises with a GPU. If S is too large, the first pass is
repeated with a longer step, and the second never runs.
"""
