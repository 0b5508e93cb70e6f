"""Morton sorting, and results back in the original order."""

import pytest
import torch

pytest.importorskip("triton")

from nfsd3d.generators.nerf.morton_triton import BITS, back_in_place, in_space_order, space_order


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


def test_a_function_gets_sorted_positions_and_its_results_are_in_the_original_order(triton_device):
    positions = torch.rand(500, 3, generator=torch.Generator().manual_seed(0)).to(triton_device)
    met = []
    weight = torch.tensor([2.0, 3.0, 5.0], device=triton_device, requires_grad=True)
    found = in_space_order(lambda x: met.append(x) or x * weight, positions)
    assert torch.equal(met[0], positions[space_order(positions)]) and torch.equal(found, positions * weight)
    found.sum().backward()
    torch.testing.assert_close(weight.grad, positions.sum(0))


def test_values_return_to_the_original_order():
    rng = torch.Generator().manual_seed(0)
    values = torch.rand(50, 4, generator=rng, dtype=torch.float64).requires_grad_()
    order = torch.randperm(50, generator=rng)
    assert torch.equal(back_in_place(values[order], order), values)
    assert torch.autograd.gradcheck(lambda x: back_in_place(x, order), values)
