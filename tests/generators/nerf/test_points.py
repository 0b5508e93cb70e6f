"""Encoded points: their order, and some of them."""

import pytest
import torch

from nfsd3d.generators.nerf.points import EncodedPoints, back_in_place


def test_values_return_to_the_original_order():
    rng = torch.Generator().manual_seed(0)
    values = torch.rand(50, 4, generator=rng, dtype=torch.float64).requires_grad_()
    order = torch.randperm(50, generator=rng)
    assert torch.equal(back_in_place(values[order], order), values)
    assert torch.autograd.gradcheck(lambda x: back_in_place(x, order), values)


@pytest.mark.parametrize("sorted_points", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_some_points_are_those_of_the_original_order(sorted_points: bool, share: float) -> None:
    rng = torch.Generator().manual_seed(0)
    inside = torch.rand(50, 3, generator=rng)
    order = torch.randperm(50, generator=rng) if sorted_points else None
    evaluated = inside if order is None else inside[order]
    points = EncodedPoints(evaluated, torch.cat([evaluated, 2 * evaluated], 1), order)
    kept = torch.rand(50, generator=rng) < share
    some = points.where(kept, int(kept.sum()))
    assert torch.equal(some.in_place(some.inside), inside[kept])
    assert torch.equal(some.in_place(some.features), torch.cat([inside, 2 * inside], 1)[kept])
    assert some.features.stride(0) == 1 or not kept.any()
    assert order is None or share < 1 or torch.equal(some.order, order)
