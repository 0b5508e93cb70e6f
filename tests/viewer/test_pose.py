"""Cameras of the viewer's poses."""

import math

import pytest
import torch

from nfsd3d.viewer.pose import Pose, cameras_of, fitted_fov, start_pose
from nfsd3d.views.cameras import orbit


@pytest.mark.parametrize("azimuth", [0.0, 90.0, 215.0])
def test_a_start_pose_is_the_camera_of_an_orbit(azimuth):
    pose = start_pose(2.5, math.radians(45), azimuth, 30.0)
    ours, expected = cameras_of(pose, 6, 8), orbit(360, 6, 30.0, distance=2.5, fovy_deg=45.0)[round(azimuth)]
    torch.testing.assert_close(ours.camera_to_world, expected.camera_to_world, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.fovy, expected.fovy)
    assert (ours.height, ours.width) == (6, 8)


def test_a_camera_looks_at_its_target_with_the_world_upright():
    cameras = cameras_of(Pose((1.0, 2.0, 0.5), (0.3, -0.4, 0.2), 1.0), 5, 5)
    right, up, backward = cameras.rotations[0].T
    torch.testing.assert_close(cameras.positions[0], torch.tensor([1.0, 2.0, 0.5]))
    ahead = torch.nn.functional.normalize(torch.tensor([0.3 - 1.0, -0.4 - 2.0, 0.2 - 0.5]), dim=0)
    torch.testing.assert_close(-backward, ahead)
    assert up[2] > 0 and abs(right @ up) < 1e-6
    middle = cameras.rays().directions.reshape(5, 5, 3)[2, 2]
    torch.testing.assert_close(middle, ahead)


@pytest.mark.parametrize("aspect", [0.4, 1.0, 2.0])
def test_a_narrow_window_shows_as_much_to_the_sides_as_a_square_one(aspect):
    height = 40
    width = round(aspect * height)
    pose = Pose((2.0, 0.0, 0.0), (0.0, 0.0, 0.0), fitted_fov(0.8, aspect))
    directions = cameras_of(pose, height, width).rays().directions.reshape(height, width, 3)
    outermost = (directions[height // 2, -1, 1] / -directions[height // 2, -1, 0]).item()
    assert outermost >= math.tan(0.4) * (1 - 1.1 / width)
