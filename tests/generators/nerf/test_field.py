"""The field: its density, colours, normals and background."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch

from nfsd3d.errors import InputError
from nfsd3d.generators.nerf.background import Background, spherical_harmonics
from nfsd3d.generators.nerf.field import HashGridField, outward
from nfsd3d.generators.nerf.hashgrid.encoding import hash_encoding
from nfsd3d.generators.nerf.hashgrid.spec import HashGridSpec

SPEC = HashGridSpec(levels=4, features=2, log2_entries=10, base_resolution=4, growth=1.6)


def make_field(device: torch.device, blob_scale: float = 10.0) -> HashGridField:
    torch.manual_seed(0)
    backend = "numba" if device.type == "cpu" else "torch"
    field = HashGridField(
        SPEC, backend, radius=1.0, hidden_width=16, hidden_layers=2, blob_scale=blob_scale, blob_std=0.5
    )
    return field.to(device)


def points(count: int, device: torch.device, rng: torch.Generator) -> torch.Tensor:
    return (torch.rand(count, 3, generator=rng) * 2 - 1).to(device)


def test_starts_as_the_blob(device: torch.device, rng: torch.Generator) -> None:
    field = make_field(device)
    x = points(100, device, rng)
    blob = torch.nn.functional.softplus(10 * (1 - x.norm(dim=-1) / 0.5))
    torch.testing.assert_close(field.density(x), blob, atol=1e-2, rtol=1e-2)


def test_sample_and_density_agree_and_keep_their_ranges(device: torch.device, rng: torch.Generator) -> None:
    field = make_field(device)
    torch.nn.init.normal_(field.encoding.table)
    x = points(1000, device, rng)
    sample = field(x)
    torch.testing.assert_close(sample.density, field.density(x))
    assert sample.density.shape == (1000,)
    assert sample.albedo.shape == (1000, 3)
    assert sample.density.min() >= 0
    assert sample.albedo.min() >= 0
    assert sample.albedo.max() <= 1


def test_normals_of_a_ball_point_outwards(device: torch.device, rng: torch.Generator) -> None:
    field = make_field(device)
    x = points(500, device, rng)
    x = x[(x.norm(dim=-1) > 0.05) & (x.norm(dim=-1) < 0.6)]
    radial = x / x.norm(dim=-1, keepdim=True)
    for normals in (field.analytic_normals(x), field.finite_difference_normals(x, 0.01)):
        assert (normals * radial).sum(-1).min() > 0.99
    assert not field.analytic_normals(x).requires_grad


def test_both_normals_agree_on_a_trained_field(device: torch.device, rng: torch.Generator) -> None:
    """The encoding is piecewise linear: a small difference hardly ever crosses a kink."""
    field = make_field(device)
    torch.nn.init.normal_(field.encoding.table)
    x = points(2000, device, rng) * 0.5
    analytic, difference = field.analytic_normals(x), field.finite_difference_normals(x, 1e-3)
    cosine = (analytic * difference).sum(-1)
    assert cosine.median() > 0.999
    assert cosine.mean() > 0.97


@pytest.mark.parametrize("blob_scale", [0.0, 5.0])
def test_normals_of_known_points_are_those_of_autograd(rng: torch.Generator, blob_scale: float) -> None:
    """With one hidden layer they come from kernels; beyond the cube, at its centre and on its border, too."""
    network = {"radius": 1.5, "hidden_width": 16, "hidden_layers": 1, "blob_scale": blob_scale, "blob_std": 0.5}
    field, reference = (HashGridField(SPEC, backend, **network) for backend in ("numba", "torch"))
    torch.nn.init.normal_(field.encoding.table)
    reference.load_state_dict(field.state_dict())
    special = torch.tensor([[0.0, 0.0, 0.0], [1.5, -1.5, 0.3], [1.7, 0.2, -0.1], [0.5, -9.0, 2.0]])
    x = torch.cat([points(20_000, torch.device("cpu"), rng) * 1.5, special])
    chosen = torch.cat([torch.arange(0, 20_000, 3), torch.arange(20_000, 20_004)])  # more than one part of the network
    expected = reference.analytic_normals(x[chosen])
    assert (expected.norm(dim=-1) > 0.5).float().mean() > 0.5
    sample = field(x, keep_features=True)  # with gradient, as in training
    for normals in (field.analytic_normals_of(chosen, x, sample), field.analytic_normals(x[chosen])):
        torch.testing.assert_close(normals, expected, atol=2e-4, rtol=2e-4)
        assert not normals.requires_grad
    assert field(x).features is None and reference(x, keep_features=True).features is None
    for known in (field, reference):
        torch.testing.assert_close(known.analytic_normals_of(chosen, x, known(x)), expected, atol=2e-4, rtol=2e-4)


def test_finite_difference_normals_train_the_field(device: torch.device, rng: torch.Generator) -> None:
    field = make_field(device)
    torch.nn.init.normal_(field.encoding.table)
    normals = field.finite_difference_normals(points(64, device, rng) * 0.5, 0.01)
    normals[:, 2].sum().backward()
    for parameter in field.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0


def test_analytic_normals_leave_no_gradient_behind(device: torch.device, rng: torch.Generator) -> None:
    field = make_field(device)
    field.analytic_normals(points(64, device, rng))
    assert all(parameter.grad is None for parameter in field.parameters())


def test_vanishing_gradients_give_vanishing_normals() -> None:
    normals = outward(torch.tensor([[0.0, 0, 0], [3, 0, 0], [0, -0.1, 0]]))
    torch.testing.assert_close(normals, torch.tensor([[0.0, 0, 0], [-1, 0, 0], [0, 1, 0]]), atol=1e-3, rtol=0)


def test_the_border_extends_beyond_the_cube(device: torch.device) -> None:
    field = make_field(device, blob_scale=0.0)
    torch.nn.init.normal_(field.encoding.table)
    inside = torch.tensor([[1.0, 0.3, -0.2], [0.5, 1.0, -1.0]], device=device)
    outside = torch.tensor([[1.7, 0.3, -0.2], [0.5, 2.0, -9.0]], device=device)
    torch.testing.assert_close(field.density(inside), field.density(outside))


def test_spherical_harmonics_are_orthonormal() -> None:
    """Monte Carlo over the sphere: 4 pi E[Y_i Y_j] is the identity."""
    directions = torch.nn.functional.normalize(
        torch.randn(400_000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    basis = spherical_harmonics(directions)
    gram = 4 * math.pi * basis.T @ basis / directions.shape[0]
    torch.testing.assert_close(gram, torch.eye(16, dtype=torch.float64), atol=0.02, rtol=0)


def test_background_learns_a_colour_per_direction() -> None:
    torch.manual_seed(0)
    background = Background()
    directions = torch.nn.functional.normalize(torch.randn(256, 3), dim=-1)
    target = (directions + 1) / 2
    optimizer = torch.optim.Adam(background.parameters(), 0.03)
    for _ in range(150):
        loss = (background(directions) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3
    colours = background(directions)
    assert colours.min() >= 0
    assert colours.max() <= 1


@pytest.mark.gpu
@pytest.mark.parametrize("count", [4099, 1, 0])
def test_tcnn_encodes_with_gradients(count: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pytest.importorskip("tinycudann")

    encoding = hash_encoding(SPEC, "tcnn").cuda()
    x = torch.rand(count, 3, device="cuda").requires_grad_()
    features = encoding(x)
    assert features.shape == (count, SPEC.width)
    assert features.dtype == torch.float32
    features.square().sum().backward()
    assert x.grad is not None and x.grad.shape == (count, 3)
    (table,) = encoding.parameters()
    assert table.grad is not None and table.grad.isfinite().all()
    assert bool(table.grad.any()) == (count > 0)


def test_tcnn_gets_no_empty_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """For an empty batch it would return an uninitialised gradient of its tables."""

    class Unwritten(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x, table)
            return x.sum(1, keepdim=True) * table

        @staticmethod
        def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x, table = ctx.saved_tensors
            along = (gradient * table).sum(1, keepdim=True).expand_as(x)
            written = len(x) > 0
            return along, (gradient * x.sum(1, keepdim=True)).sum(0) if written else torch.full_like(table, torch.nan)

    class Encoding(torch.nn.Module):
        def __init__(self, n_input_dims: int, encoding_config: dict[str, object], dtype: torch.dtype) -> None:
            super().__init__()
            self.params = torch.nn.Parameter(torch.ones(SPEC.width, dtype=dtype))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Unwritten.apply(x, self.params)

    monkeypatch.setitem(sys.modules, "tinycudann", SimpleNamespace(Encoding=Encoding))
    encoding = hash_encoding(SPEC, "tcnn")
    for count in (0, 3):
        encoding.zero_grad()
        x = torch.rand(count, 3).requires_grad_()
        features = encoding(x)
        assert features.shape == (count, SPEC.width)
        features.sum().backward()
        assert x.grad is not None and x.grad.shape == (count, 3)
        torch.testing.assert_close(encoding.grid.params.grad, x.detach().sum().expand(SPEC.width))


def test_missing_tinycudann_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tinycudann", None)
    with pytest.raises(InputError, match=r"backend\.field=tcnn.*backend\.field=torch"):
        hash_encoding(SPEC, "tcnn")
