"""The mesh of a level set: closed, wound outward, without floaters and cavities, with refined vertices."""

import math

import numpy as np
import pytest
import torch
import trimesh

from nfsd3d.errors import InputError
from nfsd3d.export.isosurface import extract_surface, surface_normals
from nfsd3d.export.level_set import LevelSet, sample_density

BALL_VOLUME = 4 / 3 * math.pi * 0.5**3


def surface_of(density, level=50.0, cells=48, split=1, min_component=0.02):
    grid = sample_density(density, 1.0, cells + 1)
    return extract_surface(LevelSet(density, level, None, 1.0), grid, split, min_component)


def shape(surface) -> trimesh.Trimesh:
    return trimesh.Trimesh(surface.vertices, surface.faces, process=False)


def solid(inside, height=100.0):
    return lambda points: height * inside(points).float()


def ball(points, radius=0.5, center=(0.0, 0.0, 0.0)):
    return (points - torch.tensor(center)).norm(dim=-1) < radius


@pytest.mark.parametrize("split", [1, 2, 3])
def test_a_ball_becomes_a_closed_ball(split):
    def density(points):
        return torch.nn.functional.softplus(2e4 * (0.5 - points.norm(dim=-1)))

    surface = surface_of(density, level=1.0, split=split)
    mesh = shape(surface)
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.euler_number == 2
    assert mesh.volume == pytest.approx(BALL_VOLUME, rel=0.01)  # positive: wound outward
    np.testing.assert_allclose(np.linalg.norm(surface.vertices, axis=1), 0.5, atol=1e-3)  # far within a voxel


def test_vertices_are_where_the_field_crosses_the_level():
    """A density that grows very unevenly along an edge, where a straight line would miss by half a voxel."""

    def density(points):
        return 1e3 * (0.7 - points.norm(dim=-1)).clamp(min=0) ** 3

    surface = surface_of(density, level=2.0, cells=24)
    radius = 0.7 - (2.0 / 1e3) ** (1 / 3)
    np.testing.assert_allclose(np.linalg.norm(surface.vertices, axis=1), radius, atol=2e-3)


def test_a_step_is_located_to_a_16th_of_a_voxel():
    surface = surface_of(solid(ball), cells=32)
    assert np.abs(np.linalg.norm(surface.vertices, axis=1) - 0.5).max() < 2 / 32 / 16


def test_adaptive_sampling_gives_the_surface_of_a_dense_grid(torch_rough):
    """Of a rough field, with branches, holes and thin parts: marching cubes on all cells finds the same surface."""
    sparse, dense = surface_of(torch_rough, 1.0, 24, split=2), surface_of(torch_rough, 1.0, 48)
    assert len(dense.faces) > 2000
    assert shape(sparse).is_watertight and shape(dense).is_watertight
    # The lattices' points differ by rounding.
    assert abs(len(sparse.faces) - len(dense.faces)) < 0.002 * len(dense.faces)
    assert shape(sparse).volume == pytest.approx(shape(dense).volume, rel=1e-3)


@pytest.fixture
def torch_rough():
    waves = torch.tensor(np.random.default_rng(0).normal(size=(24, 3)) * 9, dtype=torch.float32)
    phases = torch.linspace(0, 6, 24)

    def density(points):
        noise = torch.cos(points @ waves.T + phases).sum(-1)
        return torch.nn.functional.softplus(noise + 12 * (0.75 - points.norm(dim=-1)))

    return density


def test_only_the_neighbourhood_of_the_surface_is_sampled():
    asked = 0

    def density(points):
        nonlocal asked
        asked += len(points)
        return 100.0 * ball(points).float()

    surface = surface_of(density, cells=64, split=4)
    assert shape(surface).is_watertight
    assert asked < 0.15 * 257**3


def test_a_surface_that_leaves_the_sampled_cells_is_followed():
    """A thin rod between the points of the coarse grid, of which only the thick end is seen there."""

    def density(points):
        rod = (points[:, 1:] - 0.031).norm(dim=-1) < 0.012
        return 100.0 * ((rod & (points[:, 0].abs() < 0.8)) | ball(points, 0.2)).float()

    surface = surface_of(density, cells=32, split=6)
    assert shape(surface).is_watertight
    assert surface.vertices[:, 0].max() == pytest.approx(0.8, abs=0.01)


def test_axes_are_not_swapped():
    surface = surface_of(solid(lambda p: (p.abs() < torch.tensor([0.6, 0.4, 0.2])).all(-1)), cells=100)
    np.testing.assert_allclose(surface.vertices.max(0), [0.6, 0.4, 0.2], atol=0.01)


def test_floaters_and_cavities_are_removed_with_everything_in_a_cavity():
    def density(points):
        hollow = ball(points) & ~ball(points, 0.35)
        return 100.0 * (hollow | ball(points, 0.25) | ball(points, 0.08, (0.8, 0.8, 0.8))).float()

    assert surface_of(density, min_component=0.0).vertices.max() > 0.7  # the floater is there
    surface = surface_of(density)
    distance = np.linalg.norm(surface.vertices, axis=1)
    assert distance.max() < 0.55 and distance.min() > 0.45
    assert shape(surface).volume == pytest.approx(BALL_VOLUME, rel=0.02)


def test_two_components_of_similar_size_are_kept():
    surface = surface_of(solid(lambda p: ball(p, 0.3, (0, -0.5, 0)) | ball(p, 0.25, (0, 0.5, 0))))
    assert surface.vertices[:, 1].min() < -0.7 and surface.vertices[:, 1].max() > 0.7
    assert shape(surface).body_count == 2


@pytest.mark.parametrize("split", [1, 2])
def test_a_solid_that_touches_the_bounds_is_closed_there(split):
    mesh = shape(surface_of(solid(lambda p: ball(p, 1.2)), split=split))
    assert mesh.is_watertight and mesh.volume > 0
    assert 1.0 <= np.abs(mesh.bounds).max() <= 1 + 0.05 * 2 / 48


def test_normals_point_against_the_gradient():
    def density(points):
        return torch.nn.functional.softplus(60 * (0.5 - points.norm(dim=-1)))

    surface = surface_of(density, level=2.0)
    normals = surface_normals(LevelSet(density, 2.0, None, 1.0), surface, 0.01)
    radial = surface.vertices / np.linalg.norm(surface.vertices, axis=1, keepdims=True)
    assert ((normals * radial).sum(1) > 0.999).all()


def test_normals_are_those_of_the_faces_where_the_field_has_no_gradient():
    surface = surface_of(solid(ball))
    normals = surface_normals(LevelSet(solid(ball), 50.0, None, 1.0), surface, 1e-6)
    radial = surface.vertices / np.linalg.norm(surface.vertices, axis=1, keepdims=True)
    assert ((normals * radial).sum(1) > 0.8).all()
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("inside", "height", "level", "words"),
    [
        (ball, 90.0, 200.0, r"empty.*threshold 200 .*between 0 and 90.*choose a threshold"),
        (ball, 0.0, 1.0, r"empty.*between 0 and 0"),
        (lambda p: torch.ones(len(p)), 10.0, 5.0, r"full.*threshold 5 .*between 10 and 10.*choose a threshold"),
        (lambda p: ~ball(p), 10.0, 5.0, r"full: all of the world's side.*between 0 and 10"),
    ],
)
def test_a_threshold_without_a_surface_is_an_error_with_the_range(inside, height, level, words):
    with pytest.raises(InputError, match=words):
        surface_of(solid(inside, height), level)


def test_a_density_that_is_not_finite_is_an_error():
    with pytest.raises(InputError, match=r"not finite \(729 of 729"):
        sample_density(lambda points: points[:, 0] / 0.0, 1.0, 9)

    def rarely(points):
        middle = (points - 0.5003).abs().amax(-1) < 0.01  # between the coarse samples
        return torch.where(middle, torch.nan, 100.0 * ball(points, 0.87).float())

    with pytest.raises(InputError, match=r"not finite"):
        surface_of(rarely, cells=32, split=8)
