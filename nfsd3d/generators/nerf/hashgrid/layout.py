"""The storage layout of a hash grid: where each level's entries are in one table, and how a vertex is hashed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nfsd3d.generators.nerf.hashgrid.spec import HashGridSpec

PRIMES = (1, 2654435761, 805459861)
"""Factors of x, y and z in the spatial hash of Teschner et al. 2003, as in Instant-NGP (eq. 4)."""


@dataclass(frozen=True)
class Layout:
    """Where each level of a hash grid is stored in the table that all levels share.

    Tensors of length L: ``resolutions`` int64, ``offsets`` int64 (the level's first entry), ``hashed`` bool. A dense
    level keeps vertex (i, j, k) at i + j n + k n^2 with n = resolution + 1; a hashed one at
    (i P0 xor j P1 xor k P2) and (2^log2_entries - 1), ``entry_mask``.
    """

    resolutions: Tensor
    offsets: Tensor
    hashed: Tensor
    entry_mask: int
    total: int

    def to(self, device: torch.device) -> "Layout":
        """The same layout with its tensors on ``device``."""
        return Layout(
            self.resolutions.to(device), self.offsets.to(device), self.hashed.to(device), self.entry_mask, self.total
        )


def layout_of(spec: HashGridSpec) -> Layout:
    """The levels of ``spec``, stored one after the other."""
    capacity = 2**spec.log2_entries
    vertices = [(resolution + 1) ** 3 for resolution in spec.resolutions]
    sizes = torch.tensor([min(count, capacity) for count in vertices])
    ends = sizes.cumsum(0)
    return Layout(
        resolutions=torch.tensor(spec.resolutions),
        offsets=ends - sizes,
        hashed=torch.tensor([count > capacity for count in vertices]),
        entry_mask=capacity - 1,
        total=int(ends[-1]),
    )
