"""The MLP for the CPU: against torch's layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nfsd3d.generators.nerf.mlp_cpu import PART, perceptron


def layers(features: Tensor, hidden: Tensor, output: Tensor) -> Tensor:
    return F.linear(F.relu(F.linear(features, hidden)), output)


def inputs(count: int, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor]:
    """Features by point, weights, and a gradient of the result."""
    rng = torch.Generator().manual_seed(0)
    shapes = ((count, 15), (40, 15), (4, 40), (count, 4))
    *given, gradient = (torch.randn(shape, generator=rng, dtype=dtype) for shape in shapes)
    return given, gradient


def results(network, given, gradient, wanted=(0, 1, 2)):
    given = [one.detach().requires_grad_(number in wanted) for number, one in enumerate(given)]
    result = network(*given)
    gradients = torch.autograd.grad(result, [given[number] for number in wanted], gradient)
    return [result.detach(), *gradients]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [0, 1, PART, 2 * PART + 77])
def test_equals_torchs_layers(count, dtype):
    given, gradient = inputs(count, dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    columns = [given[0].T.contiguous().T, *given[1:]]
    for one, other in zip(results(perceptron, columns, gradient), results(layers, given, gradient), strict=True):
        assert one.shape == other.shape and one.dtype == dtype
        assert (one - other).norm() <= tolerance * other.norm()


def test_any_strides():
    given, gradient = inputs(PART + 5)
    expected = results(layers, given, gradient)
    spread = torch.zeros(2 * PART + 10, 30)
    spread[::2, ::2] = given[0]
    for features in (given[0], spread[::2, ::2]):
        found = results(perceptron, [features, given[1].T.contiguous().T, given[2]], gradient.T.contiguous().T)
        for one, other in zip(found, expected, strict=True):
            assert (one - other).norm() <= 1e-5 * other.norm()


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_only_the_gradients_that_are_needed(wanted):
    given, gradient = inputs(301)
    expected = results(layers, given, gradient, wanted)
    for one, other in zip(results(perceptron, given, gradient, wanted), expected, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


def test_the_hidden_layer_is_not_kept():
    given, _ = inputs(PART)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()), lambda _: None):
        perceptron(*(one.requires_grad_() for one in given))
    assert sum(kept) == sum(one.numel() for one in given)


def test_nan_stays_nan_in_its_row():
    given, gradient = inputs(9)
    given[0][3, 1] = float("nan")
    found, expected = results(perceptron, given, gradient), results(layers, given, gradient)
    assert found[0].isnan().any(1).tolist() == [False] * 3 + [True] + [False] * 5
    assert all(torch.equal(one.isnan(), other.isnan()) for one, other in zip(found, expected, strict=True))
