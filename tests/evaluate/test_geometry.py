"""Solids of fields, meshes and true objects, and the recovery of known placements."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import trimesh
from small_settings import NERF
from torch import Tensor

from nfsd3d.errors import InputError
from nfsd3d.evaluate.geometry.iou import ellipsoid_iou, fit
from nfsd3d.evaluate.geometry.voxels import Solid, field_solid, mesh_solid, overlap, solid_of, surface_depth
from nfsd3d.generators.nerf.hashgrid.spec import HashGridSpec
from nfsd3d.generators.nerf.nerf import NeRF
from nfsd3d.generators.nerf.occupancy import OccupancyGrid
from nfsd3d.shapes.world.objects import OBJECTS
from nfsd3d.views.cameras import Rays

HARD = 300.0
SOFT = 30.0  # what a short training run reaches


class AnalyticField:
    """A generator's geometry in closed form: ``density`` per world unit inside a signed distance's solid."""

    def __init__(
        self, distance: Callable[[Tensor], Tensor], density: float = HARD, backend: str = "numba", cells: int = 48
    ) -> None:
        self.distance = distance
        self.inside = density
        self.step_size = 2 * math.sqrt(3) / 64
        self.sampler_backend = backend
        self.occupancy = OccupancyGrid(cells, 1.0, step_size=self.step_size, alpha_threshold=0.01, decay=0.95, warmup=1)
        occupied = distance(centers(cells)) < 2 / cells
        self.occupancy.occupied.copy_(occupied.view(cells, cells, cells))

    def density(self, positions: Tensor) -> Tensor:
        return self.inside * (self.distance(positions) < 0).to(positions.dtype)


def centers(resolution: int, radius: float = 1.0) -> Tensor:
    axis = ((torch.arange(resolution, dtype=torch.float64) + 0.5) * 2 / resolution - 1) * radius
    return torch.cartesian_prod(axis, axis, axis)


def solid_from(inside: Callable[[Tensor], Tensor], resolution: int = 64) -> Solid:
    return Solid(inside(centers(resolution)).view(resolution, resolution, resolution).numpy(), 1.0)


def ball(radius: float) -> Callable[[Tensor], Tensor]:
    return lambda points: points.norm(dim=-1) - radius


def placed(name: str, scale: float, shift: tuple[float, float, float], rotation: float = 0.0) -> Solid:
    """The true object turned about z, scaled and shifted, by a formula of the test's own."""

    def inside(points: Tensor) -> Tensor:
        x, y, z = ((points - points.new_tensor(shift)) / scale).unbind(-1)
        cosine, sine = math.cos(rotation), math.sin(rotation)
        return OBJECTS[name].distance(torch.stack([cosine * x + sine * y, cosine * y - sine * x, z], dim=-1)) < 0

    return solid_from(inside)


# --- fields ----------------------------------------------------------------------------------------------------------


@cache
def carved(name: str) -> Solid:
    return field_solid(AnalyticField(OBJECTS[name].distance), 1.0)


def test_the_overlap_of_solids() -> None:
    small, large = (solid_from(lambda points, r=r: (points.abs() < r).all(-1), 64) for r in (0.25, 0.5))
    assert overlap(small, large) == overlap(large, small) == 1 / 8
    nothing = solid_from(lambda points: points[:, 0] > 2, 64)
    assert overlap(small, nothing) == 0 and overlap(nothing, nothing) == 1
    with pytest.raises(ValueError, match="different grids"):
        overlap(small, solid_from(lambda points: ball(0.5)(points) < 0, 32))


@pytest.mark.parametrize("name", ["sphere", "torus", "mug", "chair"])
def test_carving_finds_the_true_solid(name: str) -> None:
    assert overlap(carved(name), solid_of(name, 1.0)) > 0.97


def test_a_soft_field_is_not_eroded() -> None:
    """Thin parts lose most where a surface is put as deep as half the light gets."""
    soft = AnalyticField(OBJECTS["mug"].distance, SOFT)
    assert overlap(field_solid(soft, 1.0, views=32), solid_of("mug", 1.0)) > 0.96


def test_a_cavity_that_is_open_above_is_empty() -> None:
    x, y, z = centers(64).unbind(-1)
    cavity = ((x.square() + (y + 0.12).square() < 0.3**2) & (z > -0.33) & (z < 0.5)).view(64, 64, 64).numpy()
    assert cavity.sum() > 5000
    assert carved("mug").grid[cavity].mean() < 0.01


def test_a_closed_shell_is_full() -> None:
    shell = AnalyticField(lambda points: (points.norm(dim=-1) - 0.6).abs() - 0.08)
    solid = field_solid(shell, 1.0, resolution=48, views=32, view_size=64)
    assert overlap(solid, solid_from(lambda points: ball(0.68)(points) < 0, 48)) > 0.98


def test_views_include_the_underside() -> None:
    """A bell: open to straight below only."""

    def bell(points: Tensor) -> Tensor:
        hollow = torch.maximum(points[..., :2].norm(dim=-1) - 0.35, points[..., 2] - 0.3)
        solid = torch.maximum(points[..., :2].norm(dim=-1) - 0.5, points[..., 2].abs() - 0.5)
        return torch.maximum(solid, -hollow)

    solid = field_solid(AnalyticField(bell), 1.0, resolution=48, views=32, view_size=64)
    assert overlap(solid, solid_from(lambda points: bell(points) < 0, 48)) > 0.97


def test_low_density_is_empty_and_does_not_occlude() -> None:
    """0.15 per world unit takes at most 41 % of the light on the diagonal, and 18 % before the ball."""

    class HazyBall(AnalyticField):
        def density(self, positions: Tensor) -> Tensor:
            return super().density(positions) + 0.15

    field = HazyBall(ball(0.5))
    field.occupancy.occupied.fill_(True)
    solid = field_solid(field, 1.0, resolution=32, views=24, view_size=48)
    assert overlap(solid, solid_from(lambda points: ball(0.5)(points) < 0, 32)) > 0.97
    field.inside = 0.0
    assert not field_solid(field, 1.0, resolution=16, views=8, view_size=16).grid.any()


def test_training_cameras_distance_serves_as_well() -> None:
    solid = field_solid(AnalyticField(OBJECTS["mug"].distance), 1.0, distance=2.5)
    assert overlap(solid, solid_of("mug", 1.0)) > 0.97


def test_cells_outside_all_views_are_empty() -> None:
    full = AnalyticField(lambda points: points.abs().amax(dim=-1) - 2.0)
    solid = field_solid(full, 1.0, resolution=16, views=16, view_size=32)
    assert solid.grid.all()
    beam = field_solid(full, 1.0, resolution=16, views=1, view_size=32, fovy=0.2)  # from straight above
    assert beam.grid[7:9, 7:9].all()
    assert not beam.grid[:3].any() and not beam.grid[:, -3:].any()


def test_a_nerf_is_carved_in_its_own_cube() -> None:
    """The density at the start, softplus(10 (1 - r / .25)) on the radius 2, halves the light within r = .25."""
    spec = HashGridSpec(levels=2, features=2, log2_entries=8, base_resolution=4, growth=1.5)
    settings = replace(NERF, radius=2.0, encoding=spec, hidden_width=8, density_blob_std=0.25, occupancy_resolution=32)
    nerf = NeRF(settings)
    nerf.update(0, torch.Generator().manual_seed(0))
    solid = field_solid(nerf, 2.0, resolution=64, views=16, view_size=48)
    reach = np.linalg.norm(solid.filled_centers, axis=1)
    assert len(reach) > 10 and reach.max() < 0.5
    nerf.occupancy.occupied.fill_(False)
    assert not field_solid(nerf, 2.0, resolution=16, views=4, view_size=16).grid.any()


def test_carving_on_every_device(device: torch.device) -> None:
    field = AnalyticField(ball(0.6), backend="torch")
    field.occupancy.to(device)
    solid = field_solid(field, 1.0, resolution=32, views=16, view_size=32)
    assert overlap(solid, solid_from(lambda points: ball(0.6)(points) < 0, 32)) > 0.97


@pytest.mark.parametrize("density", [SOFT, HARD])
def test_surface_depth_of_a_slab(density: float) -> None:
    slab = AnalyticField(lambda points: (points[..., 0] + 0.3).abs() - 0.2, density)
    origins = torch.tensor([[-3.0, 0.1, 0.1], [3.0, 0.1, 0.1], [-3.0, 1.5, 0.0]])
    directions = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    depth = surface_depth(slab, Rays(origins, directions), 0.01)
    torch.testing.assert_close(depth[:2], torch.tensor([2.5, 3.1]), atol=0.006, rtol=0)
    assert depth[2] == torch.inf


def test_a_ray_with_transmittance_above_one_half_has_no_surface() -> None:
    rays = Rays(torch.tensor([[-3.0, 0.1, 0.1]]), torch.tensor([[1.0, 0.0, 0.0]]))
    for optical, stops in ((0.67, False), (0.72, True)):  # ln 2 is .693
        slab = AnalyticField(lambda points: points[..., 0].abs() - 0.2, optical / 0.4)
        assert bool(surface_depth(slab, rays, 0.001).isfinite()) is stops


def test_a_density_that_is_not_finite_is_an_input_error() -> None:
    with pytest.raises(InputError, match="not finite"):
        field_solid(AnalyticField(ball(0.5), math.nan), 1.0, resolution=8, views=1, view_size=8)


@pytest.mark.parametrize("setting", [{"views": 0}, {"view_size": 1}, {"resolution": 0}, {"distance": 1.7}])
def test_impossible_views_are_input_errors(setting: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(setting))):
        field_solid(AnalyticField(ball(0.5), cells=8), 1.0, **setting)  # type: ignore[arg-type]


# --- meshes ----------------------------------------------------------------------------------------------------------


def test_a_box_is_exactly_its_cells() -> None:
    mesh = trimesh.creation.box(extents=(1.2, 0.8, 0.4))
    mesh.apply_translation((0.1, -0.2, 0.3))
    low, high = torch.tensor([-0.5, -0.6, 0.1]), torch.tensor([0.7, 0.2, 0.5])
    expected = solid_from(lambda points: ((points > low) & (points < high)).all(dim=-1), 61)
    assert (mesh_solid(mesh, 1.0, 61).grid == expected.grid).all()


def test_volumes_of_round_meshes() -> None:
    sphere = mesh_solid(trimesh.creation.icosphere(4, radius=0.7), 1.0)
    assert sphere.volume == pytest.approx(4 / 3 * math.pi * 0.7**3, rel=0.01)
    torus = trimesh.creation.torus(0.58, 0.24, major_sections=128, minor_sections=64)
    assert overlap(mesh_solid(torus, 1.0), solid_of("torus", 1.0)) > 0.98
    assert mesh_solid(torus, 1.0).volume == pytest.approx(2 * math.pi**2 * 0.58 * 0.24**2, rel=0.02)


@pytest.mark.parametrize("inverted", [True, False])
def test_a_cavity_in_a_mesh_is_empty_however_it_is_wound(inverted: bool) -> None:
    cavity = trimesh.creation.box(extents=(0.6, 0.6, 0.6))
    if inverted:
        cavity.invert()
    solid = mesh_solid(trimesh.util.concatenate([trimesh.creation.box(extents=(1.2, 1.2, 1.2)), cavity]), 1.0, 60)
    assert not solid.grid[30, 30, 30] and solid.grid[15, 30, 30]
    assert solid.volume == pytest.approx(1.2**3 - 0.6**3, rel=1e-9)  # faces lie between the cells' middles


def test_faces_edges_and_corners_on_the_middles_of_cells() -> None:
    """Where the surface runs through middles of cells, those may go either way, but no ray leaks."""
    mesh = trimesh.creation.box(extents=(1.0, 1.0, 1.0))
    mesh.apply_translation((0.125, 0.125, 0.125))
    solid = mesh_solid(mesh, 1.0, 8)
    assert solid.grid[3:6, 3:6, 3:6].all()
    assert solid.grid[2:7, 2:7, 2:7].sum() == solid.grid.sum()
    pyramid = trimesh.convex.convex_hull([[-0.625, -0.625, -0.625], [0.625, -0.625, -0.625], [-0.625, 0.625, -0.625],
                                          [0.625, 0.625, -0.625], [0.125, 0.125, 0.875]])  # fmt: skip
    assert 0 < mesh_solid(pyramid, 1.0, 8).grid.sum() < 5**3


def test_a_mesh_that_leaves_the_cube() -> None:
    expected = solid_from(lambda points: points.norm(dim=-1) < 1.3, 40)
    assert overlap(mesh_solid(trimesh.creation.icosphere(5, radius=1.3), 1.0, 40), expected) > 0.99
    above = trimesh.creation.icosphere(2, radius=0.3)
    above.apply_translation((0.0, 0.0, 5.0))
    assert not mesh_solid(above, 1.0, 16).grid.any()


def test_a_mesh_with_a_hole_is_an_input_error() -> None:
    mesh = trimesh.creation.icosphere(2, radius=0.7)
    mesh.update_faces(np.arange(len(mesh.faces)) != 7)
    with pytest.raises(InputError, match="not closed"):
        mesh_solid(mesh, 1.0)


def test_large_meshes_are_fast() -> None:
    mesh = trimesh.creation.icosphere(6, radius=0.8)
    assert len(mesh.faces) > 50_000
    start = time.process_time()
    mesh_solid(mesh, 1.0, 64)
    assert time.process_time() - start < 3


# --- fits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sphere", "cube", "mushroom", "mug", "chair", "robot"])
def test_the_true_solid_fits_itself(name: str) -> None:
    result = fit(solid_of(name, 1.0), name)
    assert 0.98 < result.iou <= 1
    assert result.scale == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(result.shift, 0, atol=0.01)
    assert not result.empty


@pytest.mark.parametrize(
    ("name", "rotation"),
    [("sphere", 0.0), ("torus", 0.0), ("cube", 0.35), ("pyramid", -0.7), ("mug", 0.0), ("chair", 0.0), ("bird", 0.0)],
)
def test_a_known_placement_is_found(name: str, rotation: float) -> None:
    result = fit(placed(name, 0.8, (0.12, -0.07, 0.1), rotation), name)
    assert 0.98 < result.iou <= 1
    assert result.scale == pytest.approx(0.8, abs=0.015)
    np.testing.assert_allclose(result.shift, (0.12, -0.07, 0.1), atol=0.015)
    assert result.rotation == pytest.approx(rotation, abs=0.02)


def test_floaters_cost_their_volume_only() -> None:
    true = placed("mushroom", 0.7, (-0.15, 0.1, 0.05))
    floater = solid_from(lambda points: (points - 0.8).norm(dim=-1) < 0.19)
    result = fit(Solid(true.grid | floater.grid, 1.0), "mushroom")
    assert result.iou == pytest.approx(true.volume / (true.volume + floater.volume), abs=0.02)
    assert result.scale == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("name", ["chair", "car", "house"])
def test_an_object_with_a_front_is_not_turned_back(name: str) -> None:
    solid = solid_of(name, 1.0)
    turned = fit(Solid(np.rot90(solid.grid, axes=(0, 1)).copy(), 1.0), name)
    assert turned.rotation == 0
    assert turned.iou < fit(solid, name).iou - 0.04
    if name != "house":  # which is nearly the same from four sides
        assert turned.iou < 0.7


@pytest.mark.parametrize("name", [name for name, shape in OBJECTS.items() if not shape.has_front])
def test_a_quarter_turn_changes_no_object_without_a_front(name: str) -> None:
    """The fit looks for headings within one."""
    solid = solid_of(name, 1.0, 48)
    assert overlap(Solid(np.rot90(solid.grid, axes=(0, 1)).copy(), 1.0), solid) > 0.999


def test_volume_outside_the_cube_counts_in_the_iou() -> None:
    """Half a ball, cut off by the cube, is not a ball, although all cells in the cube agree."""
    half = solid_from(lambda points: (points - torch.tensor([1.0, 0.0, 0.0])).norm(dim=-1) < 0.6)
    assert 0.5 < fit(half, "sphere").iou < 0.8


def test_the_fit_of_an_empty_solid_is_marked_empty() -> None:
    result = fit(Solid(np.zeros((16, 16, 16), dtype=bool), 1.0), "mug")
    assert result.iou == 0 and result.empty
    assert result.ellipsoid == ellipsoid_iou("mug")


def test_a_single_cell_and_a_full_cube_can_be_fitted() -> None:
    grid = np.zeros((16, 16, 16), dtype=bool)
    grid[3, 9, 12] = True
    assert 0 <= fit(Solid(grid, 1.0), "torus").iou <= 1
    assert fit(Solid(np.ones((16, 16, 16), dtype=bool), 1.0), "cube").iou > 0.9


def test_other_radii_and_resolutions() -> None:
    result = fit(solid_of("torus", 2.0, 96), "torus")
    assert result.iou > 0.98 and result.scale == pytest.approx(1, abs=0.02)


def test_ellipsoids_match_a_sphere_and_little_else() -> None:
    assert ellipsoid_iou("sphere") > 0.97
    for name in ("torus", "chair", "mug", "tree"):
        assert 0.2 < ellipsoid_iou(name) < 0.7


@pytest.mark.parametrize("call", [lambda: solid_of("teapot", 1.0), lambda: fit(solid_of("mug", 1.0, 8), "teapot")])
def test_unknown_objects_are_input_errors(call: Callable[[], object]) -> None:
    with pytest.raises(InputError, match=r"object=teapot.*mushroom"):
        call()


@pytest.mark.parametrize("make", [lambda: solid_of("mug", 1.0, 0), lambda: mesh_solid(trimesh.Trimesh(), 1.0, 0)])
def test_no_cells_are_an_input_error(make: Callable[[], object]) -> None:
    with pytest.raises(InputError, match="resolution=0"):
        make()
