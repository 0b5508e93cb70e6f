"""Hash encoding in plain torch: the reference implementation that tests compare the kernels with."""

import torch
import torch.nn.functional as F
from torch import Tensor

from nfsd3d.generators.nerf.hashgrid.layout import PRIMES, Layout


def interpolate(positions: Tensor, table: Tensor, layout: Layout) -> Tensor:
    """[N, L * F] trilinear interpolation (arXiv 2201.05989, section 3) at positions [N,3] in the unit cube.

    Differentiable with respect to ``table`` [entries, F] and ``positions``; any device, float32 or float64.
    """
    entries, weights = corners(positions, layout)
    features = F.embedding_bag(entries.reshape(-1, 8), table, per_sample_weights=weights.reshape(-1, 8), mode="sum")
    return features.reshape(positions.shape[0], layout.resolutions.shape[0] * table.shape[1])


def corners(positions: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """The table entries [N,L,8] of the 8 vertices around each position at each level, and their weights [N,L,8]."""
    resolutions = layout.resolutions[:, None]
    scaled = positions[:, None, :] * resolutions.to(positions.dtype)
    # The last cell includes its far border and extrapolates positions outside the cube.
    cells = scaled.detach().floor().long().clamp(min=0).minimum(resolutions - 1)
    fractions = scaled - cells

    axes = torch.arange(3, device=positions.device)
    bits = torch.arange(8, device=positions.device)[:, None] >> axes & 1
    vertices = cells[:, :, None, :] + bits
    weights = torch.where(bits.bool(), fractions[:, :, None, :], 1 - fractions[:, :, None, :]).prod(-1)

    i, j, k = vertices.unbind(-1)
    side = resolutions + 1
    dense = i + side * (j + side * k)
    hashed = (i * PRIMES[0] ^ j * PRIMES[1] ^ k * PRIMES[2]) & layout.entry_mask
    entries = torch.where(layout.hashed[:, None], hashed, dense) + layout.offsets[:, None]
    return entries, weights
