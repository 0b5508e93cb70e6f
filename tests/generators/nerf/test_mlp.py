"""The fused MLP kernel: against torch's layers, and its use by the field."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nfsd3d.generators.nerf.field import HashGridField, fused_network
from nfsd3d.generators.nerf.hashgrid.spec import HashGridSpec

pytest.importorskip("triton")

from nfsd3d.generators.nerf import mlp_triton
from nfsd3d.generators.nerf.mlp_triton import fits, perceptron

# Inputs, hidden units and outputs.
SIZES = {"recipe": (32, 64, 4), "odd": (15, 40, 4), "small": (3, 5, 1)}
Network = Callable[[Tensor, Tensor, Tensor], Tensor]


def layers(features: Tensor, hidden: Tensor, output: Tensor) -> Tensor:
    return F.linear(F.relu(F.linear(features, hidden)), output)


def random_inputs(
    name: str, count: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], Tensor]:
    """Features, hidden and output weights of unit scale, and a gradient to the output."""
    inputs, units, outputs = SIZES[name]
    rng = torch.Generator().manual_seed(0)
    shapes = ((count, inputs), (units, inputs), (outputs, units), (count, outputs))
    *given, gradient = (torch.randn(shape, generator=rng, dtype=dtype).to(device) for shape in shapes)
    return [given[0], given[1] / inputs**0.5, given[2] / units**0.5], gradient


def by_feature(features: Tensor) -> Tensor:
    """The same numbers, feature by feature in memory."""
    return features.T.contiguous().T


def results(network: Network, given: list[Tensor], gradient: Tensor) -> list[Tensor]:
    """The output, and the gradients to all that is given."""
    given = [one.detach().requires_grad_() for one in given]
    result = network(*given)
    return [result.detach(), *torch.autograd.grad(result, given, gradient)]


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative to the norm of what was expected."""
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


def exact(features: Tensor, hidden: Tensor, output: Tensor) -> Tensor:
    return perceptron(features, hidden, output, tensor_cores=False)


def quick(features: Tensor, hidden: Tensor, output: Tensor) -> Tensor:
    return perceptron(features, hidden, output, tensor_cores=True)


@pytest.mark.parametrize("layout", [torch.clone, by_feature])
@pytest.mark.parametrize("count", [0, 1, 4099])
@pytest.mark.parametrize("name", SIZES)
def test_the_kernel_equals_torch_forward_and_backward(
    name: str, count: int, layout: Callable[[Tensor], Tensor], triton_device: torch.device
) -> None:
    given, gradient = random_inputs(name, count, triton_device)
    expected = results(layers, given, gradient)
    found = results(exact, [layout(given[0]), *given[1:]], gradient)
    assert found[0].is_contiguous()
    assert by_feature(found[1]).stride() == found[1].stride()
    assert all(count == 0 or one.abs().max() > 0 for one in expected)
    assert distance(found[0], expected[0]) <= 1e-5
    for one, other in zip(found[1:], expected[1:], strict=True):
        assert distance(one, other) <= 1e-4


def tf32(x: Tensor) -> Tensor:
    """Rounded to the nearest number with 10 bits behind the point, to even between two of them."""
    bits = x.view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def rounded_results(given: list[Tensor], gradient: Tensor) -> list[Tensor]:
    """What ``results`` should be with every factor rounded to TF32, and no sum."""
    features, first, second = map(tf32, given)
    change = tf32(gradient)
    hidden = features @ first.T
    shown = tf32(hidden.relu())
    back = tf32((change @ second) * (hidden > 0))
    return [shown @ second.T, back @ first, back.T @ features, change.T @ shown]


@pytest.mark.parametrize("count", [0, 1, 4099])
@pytest.mark.parametrize("name", SIZES)
def test_tensor_cores_round_factors_only(name: str, count: int, triton_device: torch.device) -> None:
    given, gradient = random_inputs(name, count, triton_device)
    found = results(quick, [by_feature(given[0]), *given[1:]], gradient)
    precise = results(layers, given, gradient)
    assert distance(found[0], precise[0]) <= (2e-3 if count > 1 else 1e-2)
    if count > 1:
        assert distance(found[0], precise[0]) > 1e-4
    expected = rounded_results(given, gradient)
    assert distance(found[0], expected[0]) <= 1e-4
    for one, other in zip(found[1:], expected[1:], strict=True):
        # A hidden number next to zero may fall to either side, and takes a whole gradient along.
        assert distance(one, other) <= 5e-3


def test_gradients_through_tensor_cores_are_close_where_no_unit_changes_sign(triton_device: torch.device) -> None:
    given, gradient = random_inputs("recipe", 4099, triton_device)
    far = ((given[0] @ given[1].T).abs() > 5e-3).all(1)
    assert 1000 < far.sum() < 4099
    given[0], gradient = given[0][far], gradient[far]
    for one, other in zip(results(quick, given, gradient), results(layers, given, gradient), strict=True):
        assert distance(one, other) <= 2e-3


@pytest.mark.parametrize("network", [exact, quick])
def test_float64_is_never_rounded(network: Network, triton_device: torch.device) -> None:
    given, gradient = random_inputs("odd", 301, triton_device, torch.float64)
    for one, other in zip(results(network, given, gradient), results(layers, given, gradient), strict=True):
        assert one.dtype == torch.float64
        assert distance(one, other) <= 1e-13


def test_any_strides_of_the_features(triton_device: torch.device) -> None:
    """Here every second point and feature, transposed weights and a gradient that lies output by output."""
    given, gradient = random_inputs("odd", 1001, triton_device)
    expected = results(layers, given, gradient)
    spread = torch.zeros(2002, 30, device=triton_device)
    spread[::2, ::2] = given[0]
    strange = [spread[::2, ::2], by_feature(given[1]), by_feature(given[2])]
    for one, other in zip(results(exact, strange, by_feature(gradient)), expected, strict=True):
        assert distance(one, other) <= 1e-5


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (1, 2), (0, 2)])
def test_only_required_gradients_are_computed(
    wanted: tuple[int, ...], triton_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, gradient = random_inputs("odd", 1001, triton_device)
    _, *expected = results(layers, given, gradient)
    launched = []
    launch = mlp_triton.launch

    def watched(kernel, programs, *arguments, **constants):
        launched.append(arguments)
        launch(kernel, programs, *arguments, **constants)

    monkeypatch.setattr(mlp_triton, "launch", watched)
    given = [one.requires_grad_(number in wanted) for number, one in enumerate(given)]
    exact(*given).backward(gradient)
    for number, (one, other) in enumerate(zip(given, expected, strict=True)):
        assert (one.grad is not None) == (number in wanted)
        assert one.grad is None or distance(one.grad, other) <= 1e-5
    _, backward = launched
    assert [argument is not None for argument in backward[6:9]] == [number in wanted for number in range(3)]


@pytest.mark.parametrize("network", [exact, quick])
def test_results_are_deterministic(network: Network, triton_device: torch.device) -> None:
    given, gradient = random_inputs("recipe", 20_011, triton_device)
    for one, other in zip(results(network, given, gradient), results(network, given, gradient), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("network", [exact, quick])
def test_nan_stays_nan_in_its_row(network: Network, triton_device: torch.device) -> None:
    given, gradient = random_inputs("odd", 9, triton_device)
    given[0][3, 1] = float("nan")
    found = results(network, given, gradient)
    assert found[0].isnan().any(1).tolist() == [False] * 3 + [True] + [False] * 5
    for one, other in zip(found, results(layers, given, gradient), strict=True):
        assert torch.equal(one.isnan(), other.isnan())


@pytest.mark.gpu
@pytest.mark.parametrize("network", [exact, quick])
def test_more_than_2_to_31_elements(network: Network) -> None:
    if not torch.cuda.is_available() or torch.cuda.mem_get_info()[0] < 30 * 2**30:
        pytest.skip("no CUDA device with 30 GiB of free memory")
    (_, hidden, output), _ = random_inputs("recipe", 1, torch.device("cuda"))
    count = 2**31 // 32 + 300
    features = torch.zeros(32, count, device="cuda").T
    features[-500:] = torch.randn(500, 32, device="cuda")
    features.requires_grad_()
    result = network(features, hidden, output)
    expected = layers(features.detach()[-500:].requires_grad_(), hidden, output)
    assert distance(result.detach()[-500:], expected.detach()) <= 2e-3
    result.backward(torch.ones_like(result))
    assert features.grad is not None
    (other,) = torch.autograd.grad(
        layers(last := features.detach()[-500:].requires_grad_(), hidden, output), last, torch.ones_like(expected)
    )
    assert distance(features.grad[-500:], other) <= 5e-2  # units that change their sign among so few points
    assert features.grad[:-500].count_nonzero() == 0  # units at zero


SPEC = HashGridSpec(levels=4, features=2, log2_entries=10, base_resolution=4, growth=1.6)


def make_field(backend: str, device: torch.device, layers: int = 1) -> HashGridField:
    torch.manual_seed(0)
    field = HashGridField(
        SPEC, backend, radius=1.0, hidden_width=16, hidden_layers=layers, blob_scale=10.0, blob_std=0.5
    )
    torch.nn.init.normal_(field.encoding.table)
    return field.to(device)


def test_the_fields_network_is_the_kernel(triton_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, field = (make_field(backend, triton_device) for backend in ("torch", "triton"))
    field.load_state_dict(reference.state_dict())

    def refuse(*_: Tensor) -> Tensor:
        raise AssertionError("torch's layers were asked")

    monkeypatch.setattr(field.network, "forward", refuse)
    x = torch.rand(777, 3, generator=torch.Generator().manual_seed(1)).to(triton_device) * 2 - 1
    expected, found = reference(x), field(x)
    torch.testing.assert_close(found.density, expected.density, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.albedo, expected.albedo, atol=1e-5, rtol=1e-5)
    for sample in (expected, found):
        (sample.density.sum() + sample.albedo.square().sum()).backward()
    for (name, one), other in zip(field.named_parameters(), reference.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert distance(one.grad, other.grad) <= 1e-4, name
    before = [parameter.grad.clone() for parameter in field.parameters() if parameter.grad is not None]
    torch.testing.assert_close(field.analytic_normals(x), reference.analytic_normals(x), atol=1e-4, rtol=1e-4)
    assert all(torch.equal(one, parameter.grad) for one, parameter in zip(before, field.parameters(), strict=True))
    torch.testing.assert_close(
        field.finite_difference_normals(x, 0.01), reference.finite_difference_normals(x, 0.01), atol=1e-3, rtol=1e-3
    )


def test_two_hidden_layers_are_computed_by_torch(triton_device: torch.device) -> None:
    reference, field = (make_field(backend, triton_device, layers=2) for backend in ("torch", "triton"))
    x = torch.rand(50, 3, generator=torch.Generator().manual_seed(1)).to(triton_device)
    torch.testing.assert_close(field.density(x), reference.density(x), atol=1e-5, rtol=1e-5)


def test_which_networks_have_a_kernel() -> None:
    for backend in ("torch", "tcnn"):
        assert fused_network(backend, 32, 64, 1, tensor_cores=True) is None
    assert fused_network("numba", 256, 256, 1, tensor_cores=False) is not None
    assert fused_network("numba", 32, 64, 2, tensor_cores=False) is None
    for tensor_cores in (False, True):
        assert fused_network("triton", 32, 64, 1, tensor_cores=tensor_cores) is not None
        assert fused_network("triton", 16, 32, 1, tensor_cores=tensor_cores) is not None
        assert fused_network("triton", 32, 64, 2, tensor_cores=tensor_cores) is None
        assert fused_network("triton", 32, 256, 1, tensor_cores=tensor_cores) is None
        assert fused_network("triton", 256, 64, 1, tensor_cores=tensor_cores) is None
    assert fits(64, 64, tensor_cores=True) and not fits(64, 64, tensor_cores=False)
