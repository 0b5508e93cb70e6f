"""The rays of some views, and what belongs to each of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from nfsd3d.generators.nerf.sampling.sampling import RaySamples
from nfsd3d.views.cameras import Rays


@dataclass(frozen=True)
class Bundle:
    """R rays, and for each the position of its light [R,3].

    ``background`` [R,3] replaces the scene's own for all rays, or for those of ``replaced`` [R] bool.
    """

    rays: Rays
    light: Tensor
    background: Tensor | None
    replaced: Tensor | None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All of its tensors."""
        return self.rays.origins, self.rays.directions, self.light, self.background, self.replaced

    def part(self, first: int, last: int) -> Bundle:
        """The rays from ``first`` to before ``last``."""
        return Bundle(
            Rays(self.rays.origins[first:last], self.rays.directions[first:last]),
            self.light[first:last],
            None if self.background is None else self.background[first:last],
            None if self.replaced is None else self.replaced[first:last],
        )


def chunks_of_rays(bundle: Bundle, samples: RaySamples, count: int | None) -> Iterator[tuple[Bundle, RaySamples]]:
    """``count`` rays at a time (None: all) with their samples; views of the same memory, except for the indices."""
    if count is None or count >= len(bundle.rays):
        yield bundle, samples
        return
    bounds = [*range(0, len(bundle.rays), count), len(bundle.rays)]
    ends = [*samples.offsets[:-1:count].tolist(), samples.ray_indices.shape[0]]
    for (first, last), (start, end) in zip(pairwise(bounds), pairwise(ends), strict=True):
        chunk = RaySamples(
            samples.ray_indices[start:end] - first,
            samples.t_starts[start:end],
            samples.t_ends[start:end],
            samples.offsets[first : last + 1] - start,
        )
        yield bundle.part(first, last), chunk
