"""Previews, contact sheets, turntables and image grids."""

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

from nfsd3d.generators.base import Rendering
from nfsd3d.views.cameras import orbit
from nfsd3d.visualize.image_grid import write_png
from nfsd3d.visualize.images import contact_sheet, depth_image, normal_image, preview, turntable_frames, write_video


def rendering(size=16, solid=True, depth=2.0, normal=(0.0, 0.0, 1.0), value=0.5) -> Rendering:
    shape = (1, 1, size, size)
    opacity = torch.full(shape, float(solid))
    return Rendering(
        image=torch.full((1, 3, size, size), value),
        opacity=opacity,
        depth=torch.full(shape, depth),
        depth_variance=torch.zeros(shape),
        normal=torch.tensor(normal)[None, :, None, None] * opacity,
        orientation=torch.zeros(shape),
        albedo=None,
        samples_per_ray=torch.tensor(1.0),
    )


class Disc:
    """A generator with a brightness that encodes the camera's azimuth."""

    def render_in_chunks(self, cameras, options):
        assert len(cameras) == 1
        return rendering(cameras.height, value=float(cameras.azimuth[0]) / 7)


def test_depth_is_white_near_and_dark_far_and_black_where_empty():
    assert depth_image(rendering(depth=1.5), 1.5, 3.5).min() == 255
    assert depth_image(rendering(depth=3.5), 1.5, 3.5).max() == round(0.15 * 255)
    assert depth_image(rendering(solid=False), 1.5, 3.5).max() == 0


def test_normals_are_colours_on_white():
    np.testing.assert_array_equal(normal_image(rendering(normal=(0.0, 0.0, 1.0)))[0, 0], [128, 128, 255])
    np.testing.assert_array_equal(normal_image(rendering(normal=(-0.4, 0.0, 0.0)))[0, 0], [0, 128, 128])  # any length
    assert (normal_image(rendering(solid=False)) == 255).all()


def test_image_grids_have_one_column_per_camera():
    assert preview(Disc(), orbit(4, 16)).shape == (3 * 16, 4 * 16, 3)
    sheet = contact_sheet(Disc(), orbit(8, 16))
    assert sheet.shape == (2 * 16, 8 * 16, 3)
    top = sheet[0, ::16, 0].astype(int)
    assert (np.diff(top) > 0).all()  # azimuth grows to the right


def test_progress_is_reported_after_each_view():
    calls = []
    list(turntable_frames(Disc(), orbit(3, 16), 1.0, on_progress=lambda: calls.append(1)))
    assert len(calls) == 3


def test_a_video_reloads_with_its_frames(tmp_path):
    frames = list(turntable_frames(Disc(), orbit(12, 34), 1.0))
    write_video(tmp_path / "turntable.mp4", iter(frames))
    loaded = imageio.imread(tmp_path / "turntable.mp4", plugin="pyav")
    assert loaded.shape == (12, 34, 3 * 34, 3)
    assert np.abs(loaded[:, :, :34].mean((1, 2, 3)) - np.stack(frames)[:, :, :34].mean((1, 2, 3))).max() < 6
    assert [path.name for path in tmp_path.iterdir()] == ["turntable.mp4"]


def test_an_incomplete_video_leaves_no_file(tmp_path):
    def broken():
        yield np.zeros((16, 16, 3), np.uint8)
        raise RuntimeError("no more frames")

    with pytest.raises(RuntimeError, match="no more frames"):
        write_video(tmp_path / "turntable.mp4", broken())
    assert list(tmp_path.iterdir()) == []
    write_png(tmp_path / "view.png", np.full((4, 6, 3), 7, np.uint8))
    np.testing.assert_array_equal(imageio.imread(tmp_path / "view.png"), 7)
