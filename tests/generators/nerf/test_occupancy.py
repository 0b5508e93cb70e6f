"""The occupancy grid: keeps density, decays where it vanished, and stays open in an empty scene."""

import math

import pytest
import torch

from nfsd3d.generators.nerf.occupancy import OccupancyGrid


def make_grid(resolution: int = 24, radius: float = 1.0, decay: float = 0.8, warmup: int = 4) -> OccupancyGrid:
    return OccupancyGrid(resolution, radius, step_size=0.05, alpha_threshold=0.01, decay=decay, warmup=warmup)


def ball(size: float, centre: float = 0.0, density: float = 50.0):
    return lambda x: density * ((x - centre).norm(dim=-1) < size).float()


def distances(grid: OccupancyGrid, centre: float = 0.0) -> torch.Tensor:
    """Distance of each cell's middle to a point on the cube's diagonal."""
    middles = ((torch.arange(grid.resolution) + 0.5) / grid.resolution * 2 - 1) * grid.radius
    return (torch.stack(torch.meshgrid(middles, middles, middles, indexing="ij"), -1) - centre).norm(dim=-1)


def half_diagonal(grid: OccupancyGrid) -> float:
    return math.sqrt(3) * grid.radius / grid.resolution


@pytest.mark.parametrize("radius", [1.0, 2.5])
def test_keeps_a_sphere_and_prunes_the_rest(radius: float, rng: torch.Generator) -> None:
    grid = make_grid(radius=radius)
    for step in range(4):
        grid.update(ball(0.6 * radius), step, rng)
    inside = distances(grid) < 0.6 * radius - half_diagonal(grid)
    outside = distances(grid) > 0.6 * radius + half_diagonal(grid)
    assert inside.sum() > 500
    assert grid.occupied[inside].all()
    assert not grid.occupied[outside].any()


def test_axes_are_not_mixed_up(rng: torch.Generator) -> None:
    grid = make_grid(resolution=7)
    grid.update(lambda x: 50.0 * ((x[:, 0] > 0.5) & (x[:, 2] < 0)).float(), 0, rng)
    occupied = grid.occupied.nonzero()
    assert occupied[:, 0].min() >= 5
    assert occupied[:, 2].max() <= 3
    assert occupied[:, 1].min() == 0


def test_after_warmup_vanished_density_decays_and_new_density_is_found(rng: torch.Generator) -> None:
    grid = make_grid(warmup=1)
    grid.update(ball(0.3, -0.5), 0, rng)
    assert grid.occupied[distances(grid, -0.5) < 0.2].all()
    for step in range(1, 60):
        grid.update(ball(0.3, 0.5), step, rng)
    assert not grid.occupied[distances(grid, -0.5) < 0.2].any()
    assert grid.occupied[distances(grid, 0.5) < 0.2].all()


def test_after_warmup_only_a_part_of_the_cells_is_evaluated(rng: torch.Generator) -> None:
    grid = make_grid(warmup=1)
    seen: list[int] = []

    def density(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.shape[0])
        return ball(0.6)(x)

    grid.update(density, 0, rng)
    grid.update(density, 1, rng)
    assert seen[0] == 24**3
    assert 24**3 // 4 < seen[1] <= 24**3 // 2


def test_an_empty_scene_stays_occupied(rng: torch.Generator) -> None:
    grid = make_grid()
    for step in range(10):
        grid.update(lambda x: torch.zeros(x.shape[0]), step, rng)
    assert grid.occupied.float().mean() == 1.0
    grid.update(ball(0.5), 10, rng)
    assert grid.occupied.any()


def test_a_low_density_everywhere_keeps_its_denser_half(rng: torch.Generator) -> None:
    """Below the threshold everywhere, the mean of the densities decides."""
    grid = make_grid()
    grid.update(lambda x: 1e-3 * (1 + x[:, 2]), 0, rng)
    assert 0.4 < grid.occupied.float().mean() < 0.6
    assert grid.occupied[..., -3:].all()


def test_threshold_is_an_alpha_per_step() -> None:
    grid = make_grid()
    assert 1 - math.exp(-grid.density_threshold * 0.05) == pytest.approx(0.01)


def test_same_rng_same_grid_and_no_global_randomness(rng: torch.Generator) -> None:
    grids = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(grids))
        grid = make_grid(resolution=9, warmup=1)
        generator = torch.Generator().manual_seed(seed)
        for step in range(3):
            grid.update(lambda x: x.square().sum(-1), step, generator)
        grids.append(grid.density)
    assert torch.equal(grids[0], grids[1])
    assert not torch.equal(grids[0], grids[2])


def test_state_dict_round_trip(rng: torch.Generator) -> None:
    grid, other = make_grid(), make_grid()
    grid.update(ball(0.4), 0, rng)
    other.load_state_dict(grid.state_dict())
    assert torch.equal(grid.occupied, other.occupied)
    assert torch.equal(grid.density, other.density)
