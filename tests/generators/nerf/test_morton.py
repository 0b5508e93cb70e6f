"""Morton sorting."""

import pytest
import torch

pytest.importorskip("triton")

from nfsd3d.generators.nerf.morton_triton import BITS, space_order


def code(cell):
    """Bits of x, y and z in turns, by the definition."""
    return sum(((value >> bit) & 1) << (3 * bit + axis) for axis, value in enumerate(cell) for bit in range(BITS))


def test_the_order_is_that_of_morton_codes(triton_device):
    rng = torch.Generator().manual_seed(0)
    positions = torch.rand(1500, 3, generator=rng)
    positions[:4] = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0.5], [0.25, 1, 0]])
    cells = (positions * 2**BITS).long().clamp(max=2**BITS - 1).tolist()
    codes = torch.tensor([code(cell) for cell in cells])
    order = space_order(positions.to(triton_device)).cpu()
    assert sorted(order.tolist()) == list(range(1500))
    assert (codes[order].diff() >= 0).all() and codes.unique().shape[0] > 1400


def test_consecutive_points_are_neighbours(triton_device):
    positions = torch.rand(4096, 3, generator=torch.Generator().manual_seed(0)).to(triton_device)
    steps = [points.diff(dim=0).norm(dim=1).mean() for points in (positions, positions[space_order(positions)])]
    assert steps[1] < 0.2 * steps[0]


def test_points_outside_the_cube_and_nan_are_sorted_too(triton_device):
    positions = torch.tensor([[0.5, 0.5, 0.5], [-3.0, 9.0, 0.1], [float("nan"), 0.2, float("inf")]]).to(triton_device)
    assert sorted(space_order(positions).tolist()) == [0, 1, 2]
    assert space_order(positions[:0]).shape == (0,)
