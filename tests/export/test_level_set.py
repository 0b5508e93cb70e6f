"""The level set of the visible surface, and hidden voxels."""

import numpy as np
import pytest
import scipy.ndimage
import torch

from nfsd3d.errors import InputError
from nfsd3d.export import level_set
from nfsd3d.export.isosurface import extract_surface
from nfsd3d.export.level_set import (
    SAMPLES,
    DensityGrid,
    LevelSet,
    hidden_voxels,
    inverse_softplus,
    sample_density,
    visible_level,
    visible_level_set,
)
from nfsd3d.export.visibility_numba import meet_surfaces
from nfsd3d.generators.nerf.launch_numba import launch


def balls(*parts):
    """The densest of balls, each (radius, density, center)."""

    def density(points):
        each = [d * ((points - torch.tensor(c)).norm(dim=-1) < r).float() for r, d, c in parts]
        return torch.stack(each).amax(0)

    return density


ORIGIN = (0.0, 0.0, 0.0)


def shown(density, cells=64):
    """The surface that views show, and its level."""
    grid = sample_density(density, 1.0, cells + 1)
    level_set = visible_level_set(density, grid)
    return extract_surface(level_set, grid), level_set.level


def test_the_level_is_where_rays_become_opaque():
    """Density 0.2 around a ball of density 100: an image shows the ball."""
    surface, level = shown(balls((0.4, 100.0, ORIGIN), (0.9, 0.2, ORIGIN)))
    assert 0.2 < level < 100
    np.testing.assert_allclose(np.linalg.norm(surface.vertices, axis=1), 0.4, atol=0.04)


def test_a_uniform_opaque_density_has_its_surface_at_its_boundary():
    """Density 5 over a diameter of 1.6 is opaque: an image shows its boundary, although a core is denser."""
    surface, _ = shown(balls((0.1, 100.0, ORIGIN), (0.8, 5.0, ORIGIN)))
    assert np.linalg.norm(surface.vertices, axis=1).min() > 0.7


def test_a_soft_surface_is_where_it_begins_to_stop_rays():
    """Density 100 (0.5 - r): a central ray is half stopped at r = 0.38, by a density that needs 0.06 for it."""
    surface, _ = shown(lambda points: 100 * (0.5 - points.norm(dim=-1)).clamp(min=0), 96)
    assert np.linalg.norm(surface.vertices, axis=1).mean() == pytest.approx(0.44, abs=0.025)


@pytest.mark.parametrize("towards", [(1.0, 2.0, -1.0), (-2.0, 1.0, -0.5), (1.0, 1.0, -1.0)])
def test_the_outline_of_a_soft_box_is_what_slanting_views_show(towards):
    """Rays along its sides are stopped far outside of it; no other ray is, and most views have none such."""

    def density(points):
        return torch.nn.functional.softplus(20 * (0.45 - points.abs().amax(-1)))

    _, level = shown(density, 96)
    ahead = torch.nn.functional.normalize(torch.tensor(towards), dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(ahead, torch.tensor([0.0, 0.0, 1.0])), dim=0)
    up = torch.linalg.cross(ahead, right)
    across, depth = torch.linspace(-1, 1, 96), torch.linspace(-1.8, 1.8, 361)
    points = across[:, None, None, None] * right + across[:, None, None] * up + depth[:, None] * ahead
    along = density(points)
    opaque, solid = along.sum(-1) * 0.01 > np.log(2), (along > level).any(-1)
    assert (opaque & solid).sum() > 0.85 * (opaque | solid).sum()


def test_exactly_the_voxels_that_no_view_sees_are_hidden():
    grid = sample_density(balls((0.5, 100.0, ORIGIN)), 1.0, 65)
    hidden = hidden_voxels(grid)
    axis = np.linspace(-1, 1, 65)
    radius = np.linalg.norm(np.stack(np.meshgrid(axis, axis, axis, indexing="ij")), axis=0)
    assert hidden[radius < 0.46].all() and not hidden[radius > 0.54].any()
    thin = DensityGrid(grid.values * 0.005, 1.0)  # half the light of no ray is stopped
    assert not hidden_voxels(thin).any()


def test_the_low_density_inside_a_shell_open_below_is_solid():
    """A dense cup upside down on the cube's floor: low density inside, and slightly more, but transparent, outside.

    Views see the cup through the density outside. A level above that is above the density inside, too: a level set
    alone would be hollow.
    """

    def density(points):
        x, y, z = points.unbind(-1)
        outer = (torch.hypot(x, y) < 0.6) & (z < 0.5)
        inner = (torch.hypot(x, y) < 0.5) & (z < 0.4)
        haze = (torch.hypot(x, y) < 0.7) & (z < 0.6)
        return torch.where(outer & ~inner, 60.0, torch.where(inner, 2.0, torch.where(haze, 2.5, 0.0)))

    grid = sample_density(density, 1.0, 65)
    level_set = visible_level_set(density, grid)
    assert level_set.level > 2.5
    alone = extract_surface(LevelSet(density, level_set.level, None, 1.0), grid)
    filled = extract_surface(level_set, grid)

    def volume(surface):
        corner = surface.vertices[surface.faces].astype(np.float64)
        return np.einsum("ij,ij->", corner[:, 0], np.cross(corner[:, 1], corner[:, 2])) / 6

    whole = np.pi * 0.6**2 * 1.5
    assert volume(alone) < 0.5 * whole
    assert volume(filled) == pytest.approx(whole, rel=0.04)


def test_an_open_cup_stays_hollow():
    """What views see to be empty is not filled."""

    def density(points):
        x, y, z = points.unbind(-1)
        outer, inner = (torch.hypot(x, y) < 0.6) & (z.abs() < 0.5), (torch.hypot(x, y) < 0.5) & (z > -0.4)
        return 60.0 * (outer & ~inner).float()

    surface, _ = shown(density)
    assert (np.abs(surface.vertices - [0, 0, -0.4]).max(axis=1) < 0.06).any()  # its floor, inside


@pytest.mark.parametrize("height", [0.0, 0.01])
def test_an_empty_field_is_an_error_with_its_range_and_a_remedy(height):
    grid = sample_density(balls((0.5, height, ORIGIN)), 1.0, 33)
    with pytest.raises(InputError, match=rf"empty.*between 0 and {height:g}.*train longer.*threshold"):
        visible_level(grid, np.zeros(grid.values.shape, bool))


def test_inverse_softplus_is_the_inverse():
    before = torch.linspace(-40, 200, 97, dtype=torch.float64)
    np.testing.assert_allclose(inverse_softplus(torch.nn.functional.softplus(before).numpy()), before, atol=1e-9)


def test_rays_meet_the_surfaces_that_interpolation_finds():
    rng = np.random.default_rng(0)
    values = scipy.ndimage.gaussian_filter(rng.normal(size=(24, 24, 24)), 3.0) * 40
    grid = DensityGrid(np.logaddexp(0, values).astype(np.float32), 1.0)
    hidden = scipy.ndimage.gaussian_filter(rng.normal(size=(24, 24, 24)), 2.0) > 0.04
    levels = np.array([0.5, 1.0, 2.0, 4.0], np.float32)
    starts, steps = level_set._rays(grid)
    shown, entered = torch.empty(starts.shape[:2]), torch.empty(*starts.shape[:2], len(levels))
    before, covered = torch.from_numpy(values.astype(np.float32)), torch.from_numpy(hidden.astype(np.float32))
    length = grid.spacing / SAMPLES
    launch(meet_surfaces, before, covered, starts, steps, length, torch.from_numpy(levels), shown, entered)

    count = int(np.ceil(24 * np.sqrt(3) * SAMPLES)) + 4
    places = starts[:, :, None].double() + torch.arange(count)[:, None] * steps[:, None, None].double()
    inside = ((places >= 0) & (places <= 23)).all(-1).numpy()
    at = places.reshape(-1, 3).T.numpy()
    ahead, over = (
        scipy.ndimage.map_coordinates(known, at, order=1, mode="nearest").reshape(inside.shape)
        for known in (values, hidden.astype(float))
    )
    density = np.where(inside, np.logaddexp(0, ahead), 0)
    total = np.cumsum(density * length, axis=-1)
    found = [((density > level) | ((over > 0.5) & inside)) for level in levels]
    expected = np.stack([np.where(one.any(-1), one.argmax(-1), -1) for one in found], axis=-1)
    assert (expected >= 0).any() and (expected < 0).any()
    assert (entered.numpy() == expected).mean() > 0.998  # rounding at the border, and of densities at a level
    stopped = (total > np.log(2)).argmax(-1)[..., None]
    own = np.take_along_axis(density * length, stopped, -1)
    begins = (stopped - (np.take_along_axis(total, stopped, -1) - own) / np.maximum(own, 1e-30))[..., 0].clip(0)
    begins = np.where(total[..., -1] > np.log(2), begins, -1)
    assert (begins >= 0).any() and (begins < 0).any()
    assert np.isclose(shown.numpy(), begins, atol=1e-3).mean() > 0.998
