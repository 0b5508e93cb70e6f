"""Previews, contact sheets, turntables and image grids."""

from dataclasses import replace

import av
import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from nfsd3d.generators.base import Rendering
from nfsd3d.views.cameras import orbit
from nfsd3d.visualize.animation import cut_outs, write_animation
from nfsd3d.visualize.image_grid import write_png
from nfsd3d.visualize.images import contact_sheet, depth_image, normal_image, preview, turntable_frames, write_video

PATCHES = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [200, 100, 50], [128, 128, 128], [255, 255, 255]]


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


def test_a_video_says_which_colours_it_has(tmp_path):
    """Limited-range YCbCr by BT.601's formula, and the marks that say so."""
    frame = np.empty((32, 16 * len(PATCHES), 3), np.uint8)
    for index, color in enumerate(PATCHES):
        frame[:, 16 * index : 16 * (index + 1)] = color
    write_video(tmp_path / "video.mp4", iter([frame] * 3))
    with av.open(tmp_path / "video.mp4") as video:
        decoded = next(video.decode(video=0))
        marks = video.streams.video[0].codec_context
        # H.273: the matrix of BT.601, primaries of BT.709, sRGB's transfer function, limited range.
        assert (marks.colorspace, marks.color_primaries, marks.color_trc, marks.color_range) == (6, 1, 13, 1)
    assert decoded.format.name == "yuv420p"
    planes = decoded.to_ndarray()
    luma = planes[16, 8 : 16 * len(PATCHES) : 16].astype(float)
    red, green, blue = np.array(PATCHES, float).T / 255
    expected = 16 + 219 * (0.299 * red + 0.587 * green + 0.114 * blue)
    assert np.abs(luma - expected).max() < 2
    assert (
        np.abs(imageio.imread(tmp_path / "video.mp4", plugin="pyav")[0, 16, 8::16] - np.array(PATCHES, float)).max() < 4
    )


def test_a_video_of_no_frames_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="a video needs a frame"):
        write_video(tmp_path / "video.mp4", iter([]))
    assert list(tmp_path.iterdir()) == []


def test_an_incomplete_video_leaves_no_file(tmp_path):
    def broken():
        yield np.zeros((16, 16, 3), np.uint8)
        raise RuntimeError("no more frames")

    with pytest.raises(RuntimeError, match="no more frames"):
        write_video(tmp_path / "turntable.mp4", broken())
    assert list(tmp_path.iterdir()) == []
    write_png(tmp_path / "view.png", np.full((4, 6, 3), 7, np.uint8))
    np.testing.assert_array_equal(imageio.imread(tmp_path / "view.png"), 7)


class MovingBall:
    """A generator of an orange disc with a soft outline, which moves across the view."""

    def render_in_chunks(self, cameras, options):
        rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
        middle = 8 + 2.5 * float(cameras.azimuth[0])
        opacity = (9 - torch.hypot(rows - 16, columns - middle)).div(4).clamp(0, 1)[None, None]
        color = torch.tensor([0.9, 0.5, 0.1])[None, :, None, None]
        image = color * opacity + (1 - opacity) * options.background[:, :, None, None]
        return replace(rendering(32), image=image, opacity=opacity)


@pytest.mark.parametrize("form", ["gif", "webp", "png"])
def test_an_animation_has_the_object_alone_on_clear_ground(tmp_path, form):
    frames = list(cut_outs(MovingBall(), orbit(5, 32)))
    assert all(frame.shape == (32, 32, 4) for frame in frames)
    paths = write_animation(tmp_path, form, iter(frames))
    if form == "png":
        assert [path.relative_to(tmp_path).as_posix() for path in paths] == [f"turntable/{i:03d}.png" for i in range(5)]
        read = [np.asarray(Pillow.open(path)) for path in paths]
    else:
        (path,) = paths
        with Pillow.open(path) as file:
            assert file.info["loop"] == 0 and file.n_frames == 5
            read = []
            for index in range(5):
                file.seek(index)
                read.append(np.asarray(file.convert("RGBA")))
                assert file.info["duration"] in (40, 42)
    for found, frame in zip(read, frames, strict=True):
        if form != "gif":
            np.testing.assert_array_equal(found, frame)
            continue
        opaque = frame[..., 3] >= 128
        np.testing.assert_array_equal(found[..., 3] == 255, opaque)  # nothing of the frame before is left
        assert opaque.any() and np.abs(found[opaque][:, :3].astype(int) - frame[opaque][:, :3]).max() < 12


def test_frames_of_an_earlier_animation_go(tmp_path):
    write_animation(tmp_path, "png", iter(list(cut_outs(MovingBall(), orbit(4, 32)))))
    paths = write_animation(tmp_path, "png", iter(list(cut_outs(MovingBall(), orbit(2, 32)))))
    assert sorted((tmp_path / "turntable").iterdir()) == paths


def test_colours_of_a_cut_out_are_not_multiplied_by_alpha():
    (frame,) = cut_outs(MovingBall(), orbit(1, 32))
    shown = frame[frame[..., 3] > 20][:, :3]
    assert (frame[..., 3] < 128).any() and len(np.unique(frame[..., 3])) > 5
    assert np.abs(shown.astype(int) - [230, 128, 26]).max() <= 1
