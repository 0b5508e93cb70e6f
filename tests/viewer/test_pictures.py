"""What the viewer shows of a scene."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_settings import NERF
from torch.overrides import TorchFunctionMode

from nfsd3d.bench import rasterizer
from nfsd3d.generators.mesh.mesh import TexturedMesh
from nfsd3d.generators.nerf.nerf import NeRF
from nfsd3d.viewer.pictures import CHANNELS, FAR, Scene, picture
from nfsd3d.viewer.pose import start_pose


@pytest.fixture
def field(monkeypatch):
    """An opaque ball of radius one half, with the camera two units from its centre."""
    nerf = NeRF(replace(NERF, background="color", samples_per_ray=512))
    monkeypatch.setattr(nerf.field, "_density", lambda positions, raw: (
        200 * torch.sigmoid(200 * (0.5 - positions.norm(dim=-1)))
    ))  # fmt: skip
    nerf.occupancy.occupied.fill_(True)
    return Scene(nerf.requires_grad_(False), "a ball", Path("none"), start_pose(2.0, math.radians(45)))


@pytest.fixture
def ball_mesh():
    """The ball as a mesh."""
    mesh = TexturedMesh(rasterizer._SETTINGS, replace(rasterizer.ball(), vertices=rasterizer.ball().vertices / 1.2))
    return Scene(mesh.requires_grad_(False), "a ball", Path("none"), start_pose(2.0, math.radians(45)))


@pytest.fixture(params=["field", "ball_mesh"])
def scene(request):
    """The ball, as a field and as a mesh."""
    return request.getfixturevalue(request.param)


def test_depths_are_along_the_cameras_axis(scene):
    shown = picture(scene, scene.start, 33, 33, "colour")
    assert shown.image.shape == (33, 33, 3) and shown.depth.shape == (33, 33)
    assert shown.depth[16, 16] == pytest.approx(1.5, abs=0.03)  # the front of the ball
    assert shown.depth[0, 0] == FAR and (shown.image[0, 0] == 255).all()
    row = np.flatnonzero(shown.depth[16] < FAR)
    # Seen under the angle asin(1/4), of half a view of tan(22.5 degrees).
    half = math.tan(math.asin(0.25)) / math.tan(math.radians(22.5)) * 16.5
    assert row[0] == pytest.approx(16.5 - half, abs=1.1) and row[-1] == pytest.approx(16.5 + half, abs=1.1)
    edge = shown.depth[16, row[1]]
    assert 1.6 < edge < 2.0  # its distance along the ray is larger than that of the middle, and below the centre's


@pytest.mark.parametrize("channel", CHANNELS)
def test_every_channel_is_an_image(scene, channel):
    shown = picture(scene, scene.start, 12, 20, channel)
    assert shown.image.shape == (12, 20, 3) and shown.image.dtype == np.uint8
    assert not (shown.image[6, 10] == shown.image[0, 0]).all()


def test_what_is_raised_after_a_chunk_ends_the_view(scene):
    class Enough(Exception):
        pass

    def enough():
        raise Enough

    with pytest.raises(Enough):
        picture(scene, scene.start, 8, 8, "colour", enough)


def test_a_mesh_has_no_cells(ball_mesh):
    assert ball_mesh.occupied().shape == (0, 3) and ball_mesh.cell == 0


def test_occupied_cells_are_in_their_places(field):
    scene = field
    occupied = scene.generator.occupancy.occupied
    occupied.fill_(False)
    occupied[0, 24, 47] = True
    half = 1 / 48
    np.testing.assert_allclose(scene.occupied(), [[-1 + half, half, 1 - half]], atol=1e-6)
    assert isinstance(scene.occupied(), np.ndarray) and torch.is_tensor(occupied)


def test_a_view_is_computed_where_the_scene_is(scene):
    """In the thread of its training: torch's threads of two callers would wait for each other in busy loops."""
    computed, asked = [], []

    class Watch(TorchFunctionMode):
        """Keeps the torch functions that this thread calls."""

        def __torch_function__(self, function, types, arguments=(), options=None):
            computed.append(function)
            return function(*arguments, **(options or {}))

    with ThreadPoolExecutor(1) as training:

        def exclusive(work, pixels):
            asked.append(pixels)
            return training.submit(work).result()

        with Watch():
            found = picture(replace(scene, exclusive=exclusive), scene.start, 24, 32, "normals")
            assert computed == [] and asked == [24 * 32]
            expected = picture(scene, scene.start, 24, 32, "normals")
            assert computed
    np.testing.assert_array_equal(found.image, expected.image)
    np.testing.assert_array_equal(found.depth, expected.depth)
