"""Ray marching: the numba and Triton kernels against the torch reference, and all against the geometry."""

import math
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fake_gpu import fake_gpu

from nfsd3d.errors import InputError
from nfsd3d.generators.nerf.occupancy import OccupancyGrid
from nfsd3d.generators.nerf.sampling.nerfacc import check_nerfacc, march_nerfacc, nerfacc_obstacle
from nfsd3d.generators.nerf.sampling.sampling import (
    RaySamples,
    intersect_cube,
    is_occupied,
    sample_points,
    sample_rays,
    step_length,
)
from nfsd3d.views.cameras import Rays, orbit

MANY = 10**9


def make_grid(resolution: int = 17, radius: float = 1.0) -> OccupancyGrid:
    return OccupancyGrid(resolution, radius, step_size=0.05, alpha_threshold=0.01, decay=0.95, warmup=10)


def ball_grid(resolution: int = 17, radius: float = 1.0, size: float = 0.6) -> OccupancyGrid:
    grid = make_grid(resolution, radius)
    centres = (torch.arange(resolution) + 0.5) / resolution * 2 * radius - radius
    distance = torch.stack(torch.meshgrid(centres, centres, centres, indexing="ij"), -1).norm(dim=-1)
    grid.occupied.copy_(distance < size)
    return grid


def mixed_rays() -> Rays:
    """Views from outside, rays that start inside, rays along the axes and faces, and rays that miss the cube."""
    views = orbit(3, 23, elevation_deg=[-20.0, 30.0, 89.0]).rays()
    generator = torch.Generator().manual_seed(0)
    inside = torch.rand(500, 3, generator=generator) * 2 - 1
    outward = torch.nn.functional.normalize(torch.randn(500, 3, generator=generator), dim=-1)
    axes = torch.tensor([[1.0, 0, 0], [0, -1, 0], [0, 0, 1], [0, 0, 1]])
    starts = torch.tensor([[-3.0, 0, 0], [0, 3, 0], [0, 0, -0.5], [1, 1, -3]])
    away = torch.tensor([[3.0, 3, 3], [0, 0, 5]])
    return Rays(
        torch.cat([views.origins, inside, starts, away]), torch.cat([views.directions, outward, axes, away / 9])
    )


def on(device: torch.device, rays: Rays) -> Rays:
    return Rays(rays.origins.to(device), rays.directions.to(device))


@pytest.mark.parametrize("jittered", [False, True])
@pytest.mark.parametrize(("resolution", "radius"), [(16, 1.0), (17, 1.0), (23, 1.7)])
def test_kernels_are_bit_identical_to_torch(
    resolution: int, radius: float, jittered: bool, fast_backend: tuple[str, torch.device]
) -> None:
    backend, device = fast_backend
    grid = ball_grid(resolution, radius).to(device)
    expected, found = (
        sample_rays(
            on(device, mixed_rays()),
            grid,
            step_size=0.0437,
            max_samples=MANY,
            jitter=torch.Generator().manual_seed(3) if jittered else None,
            backend=name,
        )
        for name in ("torch", backend)
    )
    assert expected.t_mids.shape[0] > 4096
    assert (expected.offsets.diff() == 0).any(), "no empty ray among them"
    if device.type == "cpu":
        for name in ("ray_indices", "offsets", "t_starts", "t_ends"):
            assert torch.equal(getattr(expected, name), getattr(found, name)), name
        return
    # On a GPU the two round alike as well, unless a compiler's or a library's next version contracts what it should
    # not: then a sample in ten thousand may fall on the other side of a cell's border, and no more than that.
    alike = expected.offsets.diff() == found.offsets.diff()
    assert (~alike).sum() <= 1e-4 * expected.t_mids.shape[0] + 1
    pairs = expected.t_mids[alike[expected.ray_indices]], found.t_mids[alike[found.ray_indices]]
    assert ((pairs[0] - pairs[1]).abs() > 1e-5).sum() <= 1e-4 * expected.t_mids.shape[0] + 1


def test_points_are_bit_identical_to_torch(fast_backend: tuple[str, torch.device]) -> None:
    backend, device = fast_backend
    rays = on(device, mixed_rays())
    samples = sample_rays(rays, ball_grid().to(device), step_size=0.0437, max_samples=MANY)
    expected, found = (sample_points(samples, rays, backend=name) for name in ("torch", backend))
    assert expected[0].abs().max() <= 1
    assert all(torch.equal(*pair) for pair in zip(expected, found, strict=True))
    edges = torch.stack([samples.t_starts, samples.t_ends], dim=1)  # whatever the strides
    again = sample_points(replace(samples, t_starts=edges[:, 0], t_ends=edges[:, 1]), rays, backend=backend)
    assert all(torch.equal(*pair) for pair in zip(expected, again, strict=True))
    views = orbit(1, 9).rays()
    _, depth = sample_points(sample_rays(views, make_grid(), step_size=0.04, max_samples=MANY), views)
    assert -2 < depth.min() < -0.5 and 0.5 < depth.max() < 2  # distance 2.5: around the world's origin


def test_samples_lie_in_occupied_cells_in_order(implementation: tuple[str, torch.device], rng: torch.Generator) -> None:
    backend, device = implementation
    grid, rays = ball_grid().to(device), on(device, mixed_rays())
    samples = sample_rays(rays, grid, step_size=0.05, max_samples=MANY, jitter=rng, backend=backend)
    assert samples.n_rays == len(rays)
    assert torch.equal(torch.bincount(samples.ray_indices, minlength=len(rays)), samples.offsets.diff())
    assert is_occupied(samples.positions(rays), grid).float().mean() > 0.9999
    same_ray = samples.ray_indices.diff() == 0
    assert (samples.ray_indices.diff() >= 0).all()
    assert (samples.t_mids.diff()[same_ray] > 0.05 * 0.999).all()
    torch.testing.assert_close(samples.t_ends - samples.t_starts, torch.full_like(samples.t_ends, 0.05))
    assert samples.t_mids.min() >= 0


def test_a_full_grid_is_sampled_along_the_whole_chord(implementation: tuple[str, torch.device]) -> None:
    backend, device = implementation
    rays = Rays(torch.tensor([[-3.0, 0.1, 0.2], [0.0, 0.0, 0.0]]), torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]))
    samples = sample_rays(on(device, rays), make_grid().to(device), step_size=0.1, max_samples=MANY, backend=backend)
    assert samples.offsets.tolist() == [0, 20, 30]
    torch.testing.assert_close(samples.t_mids[:20].cpu(), 2.05 + 0.1 * torch.arange(20))
    torch.testing.assert_close(samples.t_mids[20:].cpu(), 0.05 + 0.1 * torch.arange(10))


def test_diagonal_holds_the_samples_per_ray() -> None:
    direction = torch.full((1, 3), 1 / math.sqrt(3))
    rays = Rays(-2 * torch.ones(1, 3), direction)
    samples = sample_rays(rays, make_grid(), step_size=step_length(1.0, 64), max_samples=MANY)
    assert samples.t_mids.shape[0] == 64


def test_nothing_occupied_and_no_rays(implementation: tuple[str, torch.device]) -> None:
    backend, device = implementation
    grid = make_grid().to(device)
    grid.occupied.zero_()
    for rays in (mixed_rays(), Rays(torch.zeros(0, 3), torch.zeros(0, 3))):
        samples = sample_rays(on(device, rays), grid, step_size=0.05, max_samples=MANY, backend=backend)
        assert samples.t_mids.shape == samples.ray_indices.shape == (0,)
        assert samples.n_rays == len(rays)
        assert samples.ray_indices.dtype == torch.int64


def test_max_samples_lengthens_the_step_for_all_rays(implementation: tuple[str, torch.device]) -> None:
    backend, device = implementation
    grid, rays = ball_grid().to(device), on(device, orbit(2, 24).rays())
    free = sample_rays(rays, grid, step_size=0.01, max_samples=MANY, backend=backend)
    limit = free.t_mids.shape[0] // 3
    capped = sample_rays(rays, grid, step_size=0.01, max_samples=limit, backend=backend)
    assert 0.8 * limit < capped.t_mids.shape[0] <= limit
    well_hit = free.offsets.diff() > 20
    assert well_hit.sum() > 100
    assert (capped.offsets.diff()[well_hit] > 0).all(), "a ray was cut off"

    def length(samples: RaySamples) -> float:
        return float((samples.t_ends - samples.t_starts).sum())

    assert length(capped) == pytest.approx(length(free), rel=0.05)


def test_max_samples_below_the_number_of_rays_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"generator\.max_samples=100 .* 1152 rays"):
        sample_rays(orbit(2, 24).rays(), make_grid(), step_size=0.05, max_samples=100)


def test_jitter_is_uniform_within_a_step(rng: torch.Generator) -> None:
    rays = Rays(torch.tensor([[-3.0, 0, 0]]).expand(20_000, 3), torch.tensor([[1.0, 0, 0]]).expand(20_000, 3))
    samples = sample_rays(rays, make_grid(), step_size=0.5, max_samples=MANY, jitter=rng)
    shift = (samples.t_mids[samples.offsets[:-1]] - 2) / 0.5
    assert shift.min() > 0
    assert shift.max() <= 1
    histogram = torch.histc(shift, 10, 0, 1) / 20_000
    torch.testing.assert_close(histogram, torch.full((10,), 0.1), atol=0.01, rtol=0)


def test_cube_intersections() -> None:
    rays = Rays(
        torch.tensor([[-3.0, 0, 0], [0, 0, 0], [-3, 2, 0], [3, 0, 0]]),
        torch.tensor([[1.0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 0]]),
    )
    near, far = intersect_cube(rays, 1.0)
    torch.testing.assert_close(near[:2], torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(far[:2], torch.tensor([4.0, 1.0]))
    assert (far[2:] <= near[2:]).all()


@pytest.mark.parametrize("backend", ["nonsense", "nerfacc"])
def test_absent_backends_are_input_errors(backend: str) -> None:
    with pytest.raises(InputError, match=rf"backend\.sampler={backend}"):
        sample_rays(orbit(1, 4).rays(), make_grid(), step_size=0.1, max_samples=MANY, backend=backend)


def test_triton_absent_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nfsd3d.generators.nerf.sampling.triton_kernels", "nfsd3d.generators.nerf.launch_triton"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(InputError, match=r"backend\.sampler=triton: triton cannot be.*backend\.sampler=torch"):
        sample_rays(orbit(1, 4).rays(), make_grid(), step_size=0.1, max_samples=MANY, backend="triton")


def test_triton_on_a_cpu_without_the_interpreter_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from nfsd3d.generators.nerf import launch_triton

    monkeypatch.setattr(launch_triton, "INTERPRETED", False)
    with pytest.raises(InputError, match=r"backend\.sampler=triton works on CUDA only.*machine=cuda"):
        sample_rays(orbit(1, 4).rays(), make_grid(), step_size=0.1, max_samples=MANY, backend="triton")


@pytest.mark.gpu
def test_nerfacc_finds_the_same_samples() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if nerfacc_obstacle() is not None:
        pytest.skip(f"nerfacc: {nerfacc_obstacle()}")
    grid = ball_grid(32).cuda()
    views = orbit(3, 48).to("cuda").rays()
    expected = sample_rays(views, grid, step_size=0.02, max_samples=MANY, backend="torch")
    found = sample_rays(views, grid, step_size=0.02, max_samples=MANY, backend="nerfacc")
    assert is_occupied(found.positions(views), grid).float().mean() > 0.99
    difference = (found.offsets.diff() - expected.offsets.diff()).abs()
    assert difference.max() <= 2
    assert found.t_mids.shape[0] == pytest.approx(expected.t_mids.shape[0], rel=0.01)


def test_nerfaccs_samples_become_packed_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two samples on the second of three rays; where there are no rays, it would end the process."""

    def traverse_grids(origins: torch.Tensor, directions: torch.Tensor, binaries: torch.Tensor, aabbs: torch.Tensor,
                       *, near_planes: torch.Tensor, far_planes: torch.Tensor, step_size: float):  # fmt: skip
        count = len(origins)
        assert count > 0 and near_planes.shape == far_planes.shape == (count,) and binaries.ndim == 4
        assert aabbs.tolist() == [[-1, -1, -1, 1, 1, 1]]
        # The first middle, half a step behind the near plane, lies ``shift`` steps behind the entry.
        torch.testing.assert_close(near_planes.cpu() + step_size / 2, torch.tensor([2.0, 2.0, 2.0]) + 0.5 * step_size)
        vals = near_planes[1] + step_size * torch.tensor([0.5, 1.5]).to(near_planes.device)
        info = torch.tensor([[0, 0], [0, 2], [2, 0]]).to(vals.device)
        return (
            None,
            SimpleNamespace(vals=vals, ray_indices=torch.tensor([1, 1]).to(vals.device), packed_info=info),
            None,
        )

    monkeypatch.setitem(sys.modules, "nerfacc", SimpleNamespace(traverse_grids=traverse_grids))
    monkeypatch.setattr("nfsd3d.generators.nerf.sampling.nerfacc.check_nerfacc", lambda: None)
    with fake_gpu():
        grid = make_grid().cuda()
        rays = Rays(torch.tensor([[-3.0, 0, 0]] * 3).cuda(), torch.tensor([[1.0, 0, 0]] * 3).cuda())
        found = sample_rays(rays, grid, step_size=0.1, max_samples=MANY, backend="nerfacc")
        assert found.offsets.tolist() == [0, 0, 2, 2] and found.ray_indices.tolist() == [1, 1]
        torch.testing.assert_close(found.t_mids.cpu(), torch.tensor([2.05, 2.15]))
        none = Rays(torch.zeros(0, 3).cuda(), torch.zeros(0, 3).cuda())
        assert sample_rays(none, grid, step_size=0.1, max_samples=MANY, backend="nerfacc").offsets.tolist() == [0]


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        (None, "ModuleNotFoundError: import of nerfacc.cuda._backend halted"),  # not installed
        (SimpleNamespace(_C=None), "they are not compiled, and there is no nvcc"),
        (SimpleNamespace(_C=1), None),
    ],
)
def test_an_unusable_nerfacc_names_the_reason(
    monkeypatch: pytest.MonkeyPatch, backend: object, reason: str | None
) -> None:
    """The check of the device comes first, so the lines pretend to be on CUDA."""
    monkeypatch.setitem(sys.modules, "nerfacc.cuda._backend", backend)
    nerfacc_obstacle.cache_clear()
    try:
        if reason is None:
            check_nerfacc()
            return
        lines = SimpleNamespace(near=SimpleNamespace(device=SimpleNamespace(type="cuda")))
        with pytest.raises(InputError, match=re.escape(f"({reason}") + ".*docker/Dockerfile"):
            march_nerfacc(lines, 0.1, make_grid())
    finally:
        nerfacc_obstacle.cache_clear()
