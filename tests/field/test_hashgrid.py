"""The hash encoding: torch reference against first principles, numba kernels against the reference."""

import pytest
import torch

from nfsd3d.errors import InputError
from nfsd3d.field.hashgrid import HashGridSpec, hash_encoding, layout_of

# Tables small enough that most vertices collide; numbers of points, levels and features that are no powers of two.
SPECS = {
    "colliding": HashGridSpec(levels=8, features=2, log2_entries=9, base_resolution=5, growth=1.6),
    "odd": HashGridSpec(levels=5, features=3, log2_entries=11, base_resolution=7, growth=1.37),
    "dense": HashGridSpec(levels=2, features=2, log2_entries=15, base_resolution=3, growth=2.0),
}


def twins(spec: HashGridSpec, seed: int = 0) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The torch and the numba encoding with the same random table of unit scale."""
    torch.manual_seed(seed)
    reference, fast = hash_encoding(spec, "torch"), hash_encoding(spec, "numba")
    torch.nn.init.normal_(reference.table)
    fast.load_state_dict(reference.state_dict())
    return reference, fast


def points(count: int) -> torch.Tensor:
    """Random points of the cube, its corners, border and centre among them."""
    generator = torch.Generator().manual_seed(1)
    positions = torch.rand(count, 3, generator=generator)
    positions[:4] = torch.tensor([[0.0, 0, 0], [1, 1, 1], [0.5, 0, 1], [1, 0.25, 0]])
    return positions


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("count", [0, 1, 4099])
def test_numba_equals_torch_forward_and_backward(name: str, count: int) -> None:
    results = []
    gradient = torch.randn(count, SPECS[name].width, generator=torch.Generator().manual_seed(2))
    for encoding in twins(SPECS[name]):
        positions = points(4099)[:count].requires_grad_()
        features = encoding(positions)
        features.backward(gradient)
        results.append((features.detach(), encoding.table.grad, positions.grad))
    (expected, table, position), (found, table_found, position_found) = results
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for reference, fast in ((table, table_found), (position, position_found)):
        assert fast.shape == reference.shape
        assert count == 0 or reference.abs().max() > 0
        assert (fast - reference).norm() <= 1e-4 * reference.norm()
        torch.testing.assert_close(fast, reference, atol=1e-4 * float(reference.abs().max()) if count else 0, rtol=1e-4)


def test_reference_agrees_on_every_device(device: torch.device) -> None:
    reference, fast = twins(SPECS["colliding"])
    expected = fast(points(1000))
    torch.testing.assert_close(reference.to(device)(points(1000).to(device)).cpu(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_gradients_in_float64(backend: str) -> None:
    spec = HashGridSpec(levels=3, features=2, log2_entries=5, base_resolution=2, growth=1.7)
    torch.manual_seed(3)
    encoding = hash_encoding(spec, backend).double()
    torch.nn.init.normal_(encoding.table)
    positions = torch.rand(11, 3, dtype=torch.float64).requires_grad_()
    # The interpolation has kinks at the cells' borders; these points lie off them by more than the step.
    for resolution in spec.resolutions:
        scaled = positions.detach() * resolution
        assert (scaled - scaled.round()).abs().min() > 1e-4
    table = encoding.table.detach().clone().requires_grad_()

    def encode(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(encoding, {"table": values}, (x,))

    assert torch.autograd.gradcheck(encode, (positions, table), eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_interpolates_vertices_and_linear_functions_exactly(backend: str) -> None:
    """A dense level whose vertices hold a linear function gives that function everywhere in the cube."""
    spec = HashGridSpec(levels=1, features=1, log2_entries=12, base_resolution=6, growth=1.0)
    encoding = hash_encoding(spec, backend)
    side = spec.resolutions[0] + 1
    k, j, i = torch.meshgrid(*[torch.arange(side) / (side - 1)] * 3, indexing="ij")
    with torch.no_grad():
        encoding.table.copy_((2 * i - 3 * j + 0.5 * k + 1).reshape(-1, 1))
    x = points(500)
    expected = 2 * x[:, 0] - 3 * x[:, 1] + 0.5 * x[:, 2] + 1
    torch.testing.assert_close(encoding(x)[:, 0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_hash_is_the_papers(backend: str) -> None:
    """At a vertex of a hashed level the encoding is the entry that eq. 4 of arXiv 2201.05989 names (uint32)."""
    spec = HashGridSpec(levels=1, features=1, log2_entries=8, base_resolution=50, growth=1.0)
    encoding = hash_encoding(spec, backend)
    with torch.no_grad():
        encoding.table.copy_(torch.arange(256.0)[:, None])
    for vertex in ((1, 2, 3), (49, 7, 31), (20, 0, 44)):
        hashed = (vertex[0] ^ (vertex[1] * 2654435761) % 2**32 ^ (vertex[2] * 805459861) % 2**32) % 256
        value = encoding(torch.tensor([vertex]) / 50.0)
        assert value.item() == pytest.approx(hashed, abs=1e-2)


def test_layout_is_dense_where_it_fits() -> None:
    layout = layout_of(HashGridSpec(levels=3, features=2, log2_entries=9, base_resolution=4, growth=1.8))
    assert layout.resolutions.tolist() == [4, 7, 12]
    assert layout.hashed.tolist() == [False, False, True]
    assert layout.offsets.tolist() == [0, 125, 125 + 512]
    assert layout.total == 125 + 512 + 512


def test_nan_positions_stay_visible() -> None:
    reference, fast = twins(SPECS["odd"])
    positions = points(8)
    positions[3, 1] = float("nan")
    for encoding in (reference, fast):
        bad = encoding(positions).isnan().any(-1)
        assert bad.tolist() == [False] * 3 + [True] + [False] * 4


@pytest.mark.parametrize(
    ("change", "setting"),
    [
        ({"levels": 0}, "levels"),
        ({"features": 0}, "features"),
        ({"growth": 0.5}, "growth"),
        ({"growth": 100.0}, "growth"),
    ],
)
def test_impossible_sizes(change: dict[str, float], setting: str) -> None:
    with pytest.raises(InputError, match=setting):
        HashGridSpec(**change)


@pytest.mark.parametrize("backend", ["triton", "nonsense"])
def test_absent_backends_are_input_errors(backend: str) -> None:
    with pytest.raises(InputError, match=rf"backend\.field={backend}"):
        hash_encoding(HashGridSpec(), backend)
