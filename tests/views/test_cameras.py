"""Cameras: axes, angles, rays, sampling."""

import math
from dataclasses import replace

import pytest
import torch
from small_settings import CAMERAS

from nfsd3d.views.cameras import orbit, sample_cameras, spherical


def test_azimuth_zero_is_on_the_x_axis_and_looks_at_the_origin():
    cameras = orbit(4, 5, elevation_deg=0, distance=2.0)
    assert cameras.positions.allclose(torch.tensor([[2.0, 0, 0], [0, 2, 0], [-2, 0, 0], [0, -2, 0]]), atol=1e-6)
    centre = cameras.rays().directions.reshape(4, 5, 5, 3)[:, 2, 2]
    assert centre.allclose(-cameras.positions / 2, atol=1e-6)


def test_image_rows_go_down_and_columns_go_right():
    rays = orbit(1, 8, elevation_deg=0, distance=2.0).rays().directions.reshape(8, 8, 3)
    assert rays[0, 4, 2] > 0 > rays[-1, 4, 2]  # the top row looks up
    # Seen from +x with z up, right is +y.
    assert rays[4, -1, 1] > 0 > rays[4, 0, 1]


def test_field_of_view_is_vertical():
    cameras = orbit(1, 2000, elevation_deg=0, fovy_deg=50)
    rays = cameras.resized(2000, 1).rays().directions
    edge = torch.arccos((rays[0] * rays[-1]).sum())
    assert math.degrees(edge) == pytest.approx(50, abs=0.1)


@pytest.mark.parametrize("elevation", [-90.0, -30.0, 0.0, 60.0, 89.9, 90.0])
def test_rotations_are_proper_even_at_the_poles(elevation):
    cameras = orbit(6, 4, elevation_deg=elevation)
    rotations = cameras.rotations
    assert (rotations @ rotations.mT).allclose(torch.eye(3).expand(6, 3, 3), atol=1e-5)
    assert torch.linalg.det(rotations).allclose(torch.ones(6), atol=1e-5)
    assert cameras.camera_to_world[:, :3, 3].equal(cameras.positions)


def test_sampled_cameras_stay_in_their_ranges(rng):
    ranges = replace(
        CAMERAS,
        distance=(1.5, 2.0),
        fovy_deg=(40, 45),
        elevation_deg=(-10, 30),
        overhead_probability=0.25,
        overhead_deg=(60, 80),
    )
    cameras = sample_cameras(rng, 2000, 16, ranges)
    assert cameras.distance.min() >= 1.5 and cameras.distance.max() <= 2.0
    degrees = torch.rad2deg(cameras.elevation)
    overhead = degrees > 45
    assert overhead.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert degrees[overhead].min() >= 59.99 and degrees.max() <= 80.01 and degrees.min() >= -10.01
    assert torch.rad2deg(cameras.fovy).min() >= 39.99
    assert len(cameras[0]) == 1 and cameras[-1].azimuth.equal(cameras.azimuth[-1:])


def test_azimuths_are_spread_over_a_batch(rng):
    for _ in range(20):
        azimuth = sample_cameras(rng, 4, 8, CAMERAS).azimuth.sort().values
        gaps = torch.cat([azimuth.diff(), azimuth[:1] + 2 * math.pi - azimuth[-1:]])
        assert gaps.max() < math.pi + 1e-5


def test_sampling_is_reproducible_and_depends_on_the_generator():
    first, again, other = (sample_cameras(torch.Generator().manual_seed(seed), 3, 8, CAMERAS) for seed in (1, 1, 2))
    assert first.positions.equal(again.positions) and first.light.equal(again.light)
    assert not first.positions.allclose(other.positions)


def test_spherical_is_z_up():
    point = spherical(torch.tensor(0.3), torch.tensor(math.pi / 2), torch.tensor(2.0))
    assert point.allclose(torch.tensor([0.0, 0.0, 2.0]), atol=1e-6)
