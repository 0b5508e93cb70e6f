"""The hash encoding: torch reference against first principles, numba and Triton kernels against the reference."""

import sys
from dataclasses import replace

import pytest
import torch
from small_settings import HASH_GRID

from nfsd3d.errors import InputError
from nfsd3d.generators.nerf.hashgrid.encoding import hash_encoding
from nfsd3d.generators.nerf.hashgrid.layout import layout_of
from nfsd3d.generators.nerf.hashgrid.spec import HashGridSpec
from nfsd3d.generators.nerf.hashgrid.torch_reference import interpolate

# Tables small enough that most vertices collide; numbers of points, levels and features that are no powers of two.
SPECS = {
    "colliding": HashGridSpec(levels=8, features=2, log2_entries=9, base_resolution=5, growth=1.6),
    "odd": HashGridSpec(levels=5, features=3, log2_entries=11, base_resolution=7, growth=1.37),
    "dense": HashGridSpec(levels=2, features=2, log2_entries=15, base_resolution=3, growth=2.0),
}


def encodings(spec: HashGridSpec, backend: str, seed: int = 0) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The torch encoding and another with the same random table of unit scale."""
    torch.manual_seed(seed)
    reference, fast = hash_encoding(spec, "torch"), hash_encoding(spec, backend)
    torch.nn.init.normal_(reference.table)
    fast.load_state_dict(reference.state_dict())
    return reference, fast


def points(count: int) -> torch.Tensor:
    """Random points of the cube, its corners, border and centre among them; the last half follow each other on rays.

    Neighbours on a ray share cells, whose gradients a kernel may add up before it writes.
    """
    generator = torch.Generator().manual_seed(1)
    positions = torch.rand(count, 3, generator=generator)
    along = torch.linspace(0, 1, 100).repeat(count // 100 + 1)[: count - count // 2, None]
    start, end = positions[count // 2 :].roll(7, 0)[0::50].repeat_interleave(50, 0)[: len(along)], positions[:1]
    positions[count // 2 :] = start + along * (end - start)
    positions[:4] = torch.tensor([[0.0, 0, 0], [1, 1, 1], [0.5, 0, 1], [1, 0.25, 0]])[:count]
    return positions


def encode_and_differentiate(
    encoding: torch.nn.Module, positions: torch.Tensor, gradient: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, and the gradients to the table and to the positions."""
    positions = positions.clone(memory_format=torch.preserve_format).requires_grad_()
    features = encoding(positions)
    features.backward(gradient)
    return features.detach(), encoding.table.grad, positions.grad


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("count", [0, 1, 4099])
def test_kernels_equal_torch_forward_and_backward(
    name: str, count: int, fast_backend: tuple[str, torch.device]
) -> None:
    backend, device = fast_backend
    gradient = torch.randn(count, SPECS[name].width, generator=torch.Generator().manual_seed(2)).to(device)
    positions = points(4099)[:count].to(device)
    (expected, *references), (found, *gradients) = (
        encode_and_differentiate(encoding.to(device), positions, gradient)
        for encoding in encodings(SPECS[name], backend)
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for reference, fast in zip(references, gradients, strict=True):
        assert fast.shape == reference.shape
        assert count == 0 or reference.abs().max() > 0
        assert (fast - reference).norm() <= 1e-4 * reference.norm()
        torch.testing.assert_close(fast, reference, atol=1e-4 * float(reference.abs().max()) if count else 0, rtol=1e-4)


@pytest.mark.parametrize("features", [1, 8])
def test_kernels_equal_torch_for_other_widths(features: int, fast_backend: tuple[str, torch.device]) -> None:
    backend, device = fast_backend
    spec = HashGridSpec(levels=3, features=features, log2_entries=7, base_resolution=4, growth=2.0)
    positions = points(1001).to(device)
    gradient = torch.randn(1001, spec.width, generator=torch.Generator().manual_seed(2)).to(device)
    expected, found = (
        encode_and_differentiate(encoding.to(device), positions, gradient) for encoding in encodings(spec, backend)
    )
    for reference, fast in zip(expected, found, strict=True):
        torch.testing.assert_close(fast, reference, atol=1e-5 * float(reference.abs().max()), rtol=1e-4)


def test_kernels_equal_torch_in_float64_and_for_any_strides(fast_backend: tuple[str, torch.device]) -> None:
    """Results do not depend on strides: here every second row, and column-major gradients."""
    backend, device = fast_backend
    positions = points(602).to(device).double()[::2]
    gradient = torch.randn(SPECS["odd"].width, 301, generator=torch.Generator().manual_seed(2)).to(device).double().T
    assert not positions.is_contiguous()
    assert not gradient.is_contiguous()
    expected, found = (
        encode_and_differentiate(encoding.to(device).double(), positions, gradient)
        for encoding in encodings(SPECS["odd"], backend)
    )
    for reference, fast in zip(expected, found, strict=True):
        torch.testing.assert_close(fast, reference, atol=1e-11, rtol=1e-11)


def test_float16_tables_equal_tables_that_were_rounded(triton_device: torch.device) -> None:
    """Sums and gradients are float32: nothing else is rounded."""
    spec, device = replace(SPECS["colliding"], precision="float16"), triton_device
    rounded, half = encodings(SPECS["colliding"], "torch")[0], hash_encoding(spec, "triton")
    half.load_state_dict(rounded.state_dict())
    with torch.no_grad():
        rounded.table.copy_(rounded.table.half().float())
    positions = points(1001).to(device)
    gradient = torch.randn(1001, spec.width, generator=torch.Generator().manual_seed(2)).to(device)
    expected, found = (
        encode_and_differentiate(encoding.to(device), positions, gradient) for encoding in (rounded, half)
    )
    for reference, fast in zip(expected, found, strict=True):
        assert fast.dtype == torch.float32
        torch.testing.assert_close(fast, reference, atol=1e-5 * float(reference.abs().max()), rtol=1e-4)
    assert not torch.equal(half.table, rounded.table)  # what is trained is not rounded


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_other_backends_have_no_float16_tables(backend: str) -> None:
    with pytest.raises(InputError, match=r"generator.encoding.precision=float16: backend.field=" + backend):
        hash_encoding(replace(HASH_GRID, precision="float16"), backend)


@pytest.mark.gpu
def test_more_than_2_to_31_elements() -> None:
    """More than 2^31 features of a table of more than 2^31 numbers; only the last points and entries are compared."""
    pytest.importorskip("triton")
    if not torch.cuda.is_available() or torch.cuda.mem_get_info()[0] < 50 * 2**30:
        pytest.skip("no CUDA device with 50 GiB of free memory")
    spec = HashGridSpec(levels=10, features=8, log2_entries=25, base_resolution=400, growth=1.1)
    with torch.device("cuda"):
        encoding = hash_encoding(spec, "triton")
    count = 2**31 // spec.width + 300
    assert encoding.table.numel() > 2**31
    positions = torch.rand(count, 3, device="cuda")
    with torch.no_grad():
        found = encoding(positions)[-500:].clone()
    expected = interpolate(positions[-500:], encoding.table.detach(), encoding._layout)
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-5)

    gradient = torch.zeros(spec.width, count, device="cuda").T
    gradient[-500:, -8:] = 1
    encoding(positions).backward(gradient)
    # Eight weights of a point at a level sum to one, for each of the features.
    last = encoding.table.grad[encoding._layout.offsets[-1] :]
    torch.testing.assert_close(last.sum(0), torch.full((8,), 500.0, device="cuda"), rtol=1e-4, atol=0)
    assert encoding.table.grad[: encoding._layout.offsets[-1]].count_nonzero() == 0


def test_reference_agrees_on_every_device(device: torch.device) -> None:
    reference, fast = encodings(SPECS["colliding"], "numba")
    expected = fast(points(1000))
    torch.testing.assert_close(reference.to(device)(points(1000).to(device)).cpu(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "numba"])  # Triton's interpreter would take minutes; see the references
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


def test_interpolates_vertices_and_linear_functions_exactly(implementation: tuple[str, torch.device]) -> None:
    """A dense level whose vertices hold a linear function gives that function everywhere in the cube."""
    backend, device = implementation
    spec = HashGridSpec(levels=1, features=1, log2_entries=12, base_resolution=6, growth=1.0)
    encoding = hash_encoding(spec, backend).to(device)
    side = spec.resolutions[0] + 1
    k, j, i = torch.meshgrid(*[torch.arange(side) / (side - 1)] * 3, indexing="ij")
    with torch.no_grad():
        encoding.table.copy_((2 * i - 3 * j + 0.5 * k + 1).reshape(-1, 1))
    x = points(500)
    expected = 2 * x[:, 0] - 3 * x[:, 1] + 0.5 * x[:, 2] + 1
    torch.testing.assert_close(encoding(x.to(device))[:, 0].cpu(), expected, atol=1e-5, rtol=1e-5)


def test_the_hash_is_that_of_the_paper(implementation: tuple[str, torch.device]) -> None:
    """At a vertex of a hashed level the encoding is the entry that eq. 4 of arXiv 2201.05989 names (uint32)."""
    backend, device = implementation
    spec = HashGridSpec(levels=1, features=1, log2_entries=8, base_resolution=50, growth=1.0)
    encoding = hash_encoding(spec, backend).to(device)
    with torch.no_grad():
        encoding.table.copy_(torch.arange(256.0)[:, None])
    for vertex in ((1, 2, 3), (49, 7, 31), (20, 0, 44)):
        hashed = (vertex[0] ^ (vertex[1] * 2654435761) % 2**32 ^ (vertex[2] * 805459861) % 2**32) % 256
        value = encoding(torch.tensor([vertex]).to(device) / 50.0)
        assert value.item() == pytest.approx(hashed, abs=1e-2)


def test_layout_is_dense_where_it_fits() -> None:
    layout = layout_of(HashGridSpec(levels=3, features=2, log2_entries=9, base_resolution=4, growth=1.8))
    assert layout.resolutions.tolist() == [4, 7, 12]
    assert layout.hashed.tolist() == [False, False, True]
    assert layout.offsets.tolist() == [0, 125, 125 + 512]
    assert layout.total == 125 + 512 + 512


def test_nan_positions_give_nan_features(implementation: tuple[str, torch.device]) -> None:
    backend, device = implementation
    positions = points(8).to(device)
    positions[3, 1] = float("nan")
    bad = hash_encoding(SPECS["odd"], backend).to(device)(positions).isnan().any(-1)
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
        replace(HASH_GRID, **change)


def test_an_unknown_backend_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"backend\.field=nonsense: unknown; choose one of torch, numba, triton, tcnn"):
        hash_encoding(HASH_GRID, "nonsense")


def test_triton_absent_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "nfsd3d.generators.nerf.hashgrid.triton_kernels", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "nfsd3d.generators.nerf.launch_triton", raising=False)
    with pytest.raises(InputError, match=r"backend\.field=triton: triton cannot be imported.*backend\.field=torch"):
        hash_encoding(HASH_GRID, "triton")


def test_triton_on_a_cpu_without_the_interpreter_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from nfsd3d.generators.nerf import launch_triton

    monkeypatch.setattr(launch_triton, "INTERPRETED", False)
    with pytest.raises(InputError, match=r"backend\.field=triton works on CUDA only.*machine=cuda"):
        hash_encoding(HASH_GRID, "triton")(points(8))


def test_the_gradient_of_positions_needs_no_forward_pass(rng: torch.Generator) -> None:
    """numba's kernel, given positions that are not contiguous, and autograd through the reference."""
    spec = HashGridSpec(levels=4, features=2, log2_entries=10, base_resolution=4, growth=1.6)
    kernel, reference = hash_encoding(spec, "numba"), hash_encoding(spec, "torch")
    torch.nn.init.normal_(kernel.table)
    reference.load_state_dict(kernel.state_dict())
    positions, gradient = torch.rand(3, 1000, generator=rng).T, torch.randn(1000, spec.width, generator=rng)
    found, expected = (encoding.position_gradient(positions, gradient) for encoding in (kernel, reference))
    assert expected.abs().mean() > 1 and not expected.requires_grad
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)
