"""The level set of a density: closed, outward, without floaters and cavities, at the level that rendering shows."""

import math

import numpy as np
import pytest
import torch

from nfsd3d.errors import InputError
from nfsd3d.export.extract import MeshSettings, extract_mesh
from nfsd3d.export.isosurface import (
    DensityGrid,
    extract_surface,
    inverse_softplus,
    sample_density,
    solid_mask,
    visible_level,
)

BALL_VOLUME = 4 / 3 * math.pi * 0.5**3


def ball_grid(radius=0.5, density=100.0, resolution=64, center=(0.0, 0.0, 0.0)) -> DensityGrid:
    def inside(points):
        return density * ((points - torch.tensor(center)).norm(dim=-1) < radius).float()

    return sample_density(inside, 1.0, resolution)


@pytest.mark.parametrize("max_faces", [10**6, 3000])
def test_a_ball_becomes_a_closed_ball(ball, max_faces):
    extracted = extract_mesh(ball, 1.0, MeshSettings(resolution=80, max_faces=max_faces))
    mesh = extracted.mesh.to_trimesh()
    assert len(mesh.faces) <= max_faces
    assert mesh.is_watertight and mesh.is_winding_consistent
    assert mesh.volume == pytest.approx(BALL_VOLUME, rel=0.02)  # positive: wound outward
    np.testing.assert_allclose(mesh.centroid, 0, atol=0.005)
    radial = extracted.mesh.vertices / np.linalg.norm(extracted.mesh.vertices, axis=1, keepdims=True)
    assert ((extracted.mesh.normals * radial).sum(1) > 0.97).all()
    np.testing.assert_allclose(extracted.mesh.colors, extracted.mesh.vertices / 2 + 0.5, atol=0.03)


def test_axes_are_not_swapped():
    def box(points):
        x, y, z = points.abs().unbind(-1)
        return 200.0 * ((x < 0.6) & (y < 0.4) & (z < 0.2)).float()

    surface = extract_surface(sample_density(box, 1.0, 101), 50.0)
    np.testing.assert_allclose(surface.vertices.max(0), [0.6, 0.4, 0.2], atol=0.02)


def test_the_given_threshold_is_the_level(ball):
    soft = type(ball)(steepness=100.0)
    extracted = extract_mesh(soft, 1.0, MeshSettings(resolution=80, threshold=20.0, max_faces=10**6))
    assert extracted.level == 20.0
    # softplus(100 (.5 - r)) = 20 at r = .5 - ln(e^20 - 1) / 100
    expected = 0.5 - math.log(math.expm1(20.0)) / 100
    np.testing.assert_allclose(np.linalg.norm(extracted.mesh.vertices, axis=1), expected, atol=0.002)


def test_floaters_and_cavities_go():
    main = ball_grid()
    floater = ball_grid(0.08, center=(0.8, 0.8, 0.8))
    cavity = ball_grid(0.2)
    grid = DensityGrid(np.maximum(main.values, floater.values) - cavity.values, 1.0)
    assert not extract_surface(grid, 50.0, min_component=0.0).vertices.max() < 0.7  # the floater is there
    surface = extract_surface(grid, 50.0)
    assert np.linalg.norm(surface.vertices, axis=1).max() < 0.55
    assert np.linalg.norm(surface.vertices, axis=1).min() > 0.45  # no inner sphere
    assert (solid_mask(grid, 50.0) == (main.values > 50.0)).all()


def test_two_parts_of_similar_size_stay():
    left, right = ball_grid(0.3, center=(0.0, -0.5, 0.0)), ball_grid(0.25, center=(0.0, 0.5, 0.0))
    surface = extract_surface(DensityGrid(left.values + right.values, 1.0), 50.0)
    assert surface.vertices[:, 1].min() < -0.7 and surface.vertices[:, 1].max() > 0.7


def test_a_solid_that_touches_the_bounds_is_closed_there(ball):
    cut = type(ball)(radius=1.2)
    mesh = extract_mesh(cut, 1.0, MeshSettings(resolution=48, max_faces=10**6)).mesh.to_trimesh()
    assert mesh.is_watertight
    assert np.abs(mesh.bounds).max() <= 1 + 2 / 47


def test_the_level_is_where_rays_become_opaque():
    """A fog of density 1 around a ball of density 100: the ball is what a picture shows."""
    grid = ball_grid(0.4)
    foggy = DensityGrid(np.maximum(grid.values, 0.2 * ball_grid(0.9).values / 100), 1.0)
    level = visible_level(foggy)
    assert 0.2 < level < 100
    radii = np.linalg.norm(extract_surface(foggy, level).vertices, axis=1)
    np.testing.assert_allclose(radii, 0.4, atol=0.04)


def test_thick_fog_is_its_own_surface():
    """Density 5 over a diameter of 1.6 is opaque: the picture shows the fog, although a core is denser."""
    foggy = DensityGrid(np.maximum(ball_grid(0.1, density=100.0).values, ball_grid(0.8, density=5.0).values), 1.0)
    radii = np.linalg.norm(extract_surface(foggy, visible_level(foggy)).vertices, axis=1)
    assert radii.min() > 0.7


def test_a_soft_surface_lies_where_it_begins_to_stop_the_light():
    """Density 100 (0.5 - r): a central ray is half stopped at r = 0.38, by a density that needs 0.06 for it."""
    soft = sample_density(lambda points: 100 * (0.5 - points.norm(dim=-1)).clamp(min=0), 1.0, 96)
    surface = np.linalg.norm(extract_surface(soft, visible_level(soft)).vertices, axis=1)
    assert surface.mean() == pytest.approx(0.44, abs=0.025)


@pytest.mark.parametrize(("density", "words"), [(0.0, "empty"), (0.01, "empty")])
def test_an_empty_field_is_an_error_with_its_range(density, words):
    grid = ball_grid(density=density)
    with pytest.raises(InputError, match=rf"{words}.*between 0 and {density:g}"):
        visible_level(grid)


def test_a_threshold_outside_the_range_is_an_error_with_the_range():
    grid = DensityGrid(ball_grid(density=90.0).values + 10.0, 1.0)
    with pytest.raises(InputError, match=r"empty.*threshold 200.*between 10 and 100"):
        extract_surface(grid, 200.0)
    with pytest.raises(InputError, match=r"full.*threshold 5.*between 10 and 100"):
        extract_surface(grid, 5.0)


def test_densities_that_are_not_finite_are_an_error():
    with pytest.raises(InputError, match="not finite"):
        sample_density(lambda points: points[:, 0] / 0.0, 1.0, 8)


def test_inverse_softplus_is_the_inverse():
    before = torch.linspace(-40, 200, 97, dtype=torch.float64)
    np.testing.assert_allclose(inverse_softplus(torch.nn.functional.softplus(before).numpy()), before, atol=1e-9)
