"""The occupancy grid: the cells that ray marching samples (Instant-NGP, arXiv 2201.05989, appendix E.2)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nfsd3d.device import SideStream, move


class OccupancyGrid(nn.Module):
    """``resolution``^3 cells over [-radius, radius]^3, each with a running maximum of the density seen in it.

    A cell is occupied if a step of ``step_size`` through its density has an alpha of at least ``alpha_threshold``, or
    if its density is at least the grid's mean: a scene of low density everywhere keeps cells to train in. All cells are
    occupied before the first update. The state is in the ``state_dict``.
    """

    density: Tensor
    occupied: Tensor

    def __init__(
        self, resolution: int, radius: float, *, step_size: float, alpha_threshold: float, decay: float, warmup: int
    ) -> None:
        super().__init__()
        self.resolution = resolution
        self.radius = radius
        self.density_threshold = -math.log1p(-alpha_threshold) / step_size
        self.decay = decay
        self.warmup = warmup
        # For reads of the cells, which change seldom: no wait for the GPU's queued work.
        self.side_stream = SideStream()
        self.register_buffer("density", torch.zeros(resolution**3))
        self.register_buffer("occupied", torch.ones(resolution, resolution, resolution, dtype=torch.bool))

    @torch.no_grad()
    def update(self, density_fn: Callable[[Tensor], Tensor], step: int, rng: torch.Generator) -> None:
        """Samples the density at one random point in each chosen cell, after all cells have decayed by ``decay``.

        ``density_fn`` maps world positions [N,3] to densities [N]; if it raises, the grid is unchanged. All cells are
        chosen in the first ``warmup`` steps; later a random quarter of all, and as many of the occupied ones. ``rng``
        is a generator on the CPU.
        """
        cells = self._choose(step, rng)
        corners = torch.stack([cells // self.resolution**2, cells // self.resolution % self.resolution,
                               cells % self.resolution], dim=-1)  # fmt: skip
        inside = move(torch.rand(cells.shape[0], 3, generator=rng), self.density.device)
        seen = density_fn(((corners + inside) / self.resolution * 2 - 1) * self.radius)
        self.density *= self.decay
        self.density.scatter_reduce_(0, cells, seen.to(self.density.dtype), "amax")
        threshold = self.density.mean().clamp(max=self.density_threshold)
        self.occupied.copy_((self.density >= threshold).view_as(self.occupied))

    def _choose(self, step: int, rng: torch.Generator) -> Tensor:
        total = self.resolution**3
        if step < self.warmup:
            return torch.arange(total, device=self.density.device)
        quarter = max(total // 4, 1)
        anywhere = torch.randint(total, (quarter,), generator=rng)
        with self.side_stream.ahead(self.occupied):
            occupied = self.occupied.flatten().nonzero()[:, 0].cpu()
        if occupied.shape[0] > quarter:
            occupied = occupied[torch.randint(occupied.shape[0], (quarter,), generator=rng)]
        return move(torch.cat([anywhere, occupied]), self.density.device)
