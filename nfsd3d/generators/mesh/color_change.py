"""A change of colour at every point in space, which a mesh's colours learn in place of single texels.

Design note. Problem: texels that learn one by one keep the optimiser's noise on plain surfaces, and neighbours across a
seam of the texture's charts drift apart. Idea: what learns is a sum of grids in space, coarse to fine, as in a hash
encoding (Instant-NGP, arXiv 2201.05989), but without a network: a colour that a whole region lacks is learned by a
coarse grid at once. Both sides of a seam are the same point in space. Measured: docs/benchmarks.md, "Refined".
"""

import math
from typing import Final

import torch
from torch import Tensor, nn

from nfsd3d.generators.mesh.rasterize.coverage import cover, doubled_area
from nfsd3d.generators.nerf.hashgrid.encoding import hash_encoding
from nfsd3d.generators.nerf.hashgrid.spec import HashGridSpec

COARSEST = 8
"""Cells per axis of the coarsest grid; each finer one has up to twice as many. With fewer cells there is one grid."""

LOG2_ENTRIES = 19
"""Base-2 logarithm of the entries of a grid; 64 cells per axis and fewer have one for each of their vertices."""

FEATURES: Final = 4
"""Numbers of an entry, of which three are used: kernels take powers of two."""


PLACES = 512
"""Texels per side at whose centres the places of a texture are compared."""


class ColorChange(nn.Module):
    """Zero everywhere at first; ``cells`` per axis of the finest grid, over the cube [-radius, radius]^3."""

    def __init__(self, cells: int, radius: float, backend: str) -> None:
        super().__init__()
        self.radius = radius
        levels = max(math.ceil(math.log2(cells / COARSEST)), 0) + 1
        # A little more, because the finest grid's cells are rounded down.
        growth = ((cells + 0.01) / COARSEST) ** (1 / (levels - 1)) if levels > 1 else 1.0
        self.levels = levels
        spec = HashGridSpec(
            levels=levels,
            features=FEATURES,
            log2_entries=LOG2_ENTRIES,
            base_resolution=COARSEST if levels > 1 else cells,
            growth=growth,
        )
        self.grids = hash_encoding(spec, backend)
        for parameter in self.grids.parameters():
            nn.init.zeros_(parameter)

    def forward(self, points: Tensor) -> Tensor:
        """[N,3] to add to the colours at world ``points`` [N,3]."""
        inside = (points / (2 * self.radius) + 0.5).clamp(0, 1)
        each: Tensor = self.grids(inside).reshape(len(points), self.levels, FEATURES)
        return each[..., :3].sum(1)


def kept_in_range(colors: Tensor) -> Tensor:
    """``colors`` clamped to [0,1]. The gradient is that of ``colors``, so that they can come back into the range."""
    return colors + (colors.clamp(0, 1) - colors).detach()


def places_once(uv: Tensor, faces: Tensor, areas: Tensor) -> bool:
    """Whether a map ``uv`` [T,2] with triangles ``faces`` [F,3] gives each place of a texture to one surface at most.

    ``areas`` [F]: of the triangles in space, of which a hundredth may have no area on the map. A tenth of what is
    covered may be shared. Tested on the CPU, at the centres of :data:`PLACES`^2 texels of what the map covers.
    """
    low, high = uv.min(0).values, uv.max(0).values
    fitted = (uv - low) / (high - low).max().clamp(min=1e-12) * PLACES
    screen = torch.cat([fitted, torch.ones_like(uv[:, :1])], dim=-1)[None]
    on_map = doubled_area(screen[0][faces]).abs() / 2
    if float(areas[on_map < 1e-9].sum()) > 0.01 * float(areas.sum()):
        return False
    covered = int((cover(screen, faces, PLACES, PLACES, "numba") >= 0).sum())
    area = float(on_map.sum())
    return area <= 1.1 * covered + 3 * math.sqrt(area) + 16
