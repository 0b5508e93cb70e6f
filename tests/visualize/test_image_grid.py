"""Image grids: positions of images, gaps and labels, and the files they are written to."""

import numpy as np
from PIL import Image as PIL

from nfsd3d.visualize.image_grid import HEADER, MARGIN, grid, in_rows, square, write_jpeg


def images(count: int, height: int = 4, width: int = 6) -> list[np.ndarray]:
    return [np.full((height, width, 3), index + 1, np.uint8) for index in range(count)]


def test_a_grid_without_gaps_and_labels_is_the_images_side_by_side():
    a, b, c, d = images(4)
    np.testing.assert_array_equal(grid([[a, b], [c, d]]), np.vstack([np.hstack([a, b]), np.hstack([c, d])]))


def test_missing_images_short_rows_and_gaps_are_white():
    a, b, c = images(3)
    found = grid([[a, None, b], [c]], gap=2)
    assert found.shape == (2 * 6, 3 * 8, 3)
    np.testing.assert_array_equal(found[:4, 16:22], b)
    np.testing.assert_array_equal(found[6:10, :6], c)
    assert (found[:, 8:16] == 255).all() and (found[4:6] == 255).all() and (found[6:, 8:] == 255).all()


def test_labels_are_above_and_left_of_the_images():
    found = grid([[None, None]], column_labels=["first", "second"], row_labels=["a row"], cell=(40, 60))
    assert found.shape == (HEADER + 40, MARGIN + 2 * 60, 3)
    assert (found[HEADER:, MARGIN:] == 255).all() and (found[:HEADER, :MARGIN] == 255).all()
    assert found[HEADER:, :MARGIN].min() == found[:HEADER, MARGIN : MARGIN + 60].min() == 0


def test_a_square_grid_has_about_as_many_rows_as_columns():
    assert square(images(5)).shape == (2 * 4, 3 * 6, 3)
    assert (square(images(5))[4:, 12:] == 255).all()
    assert [len(row) for row in in_rows(images(5), 2)] == [2, 2, 1]


def test_a_jpeg_loses_quality_until_it_is_small_enough(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    write_jpeg(tmp_path / "large.jpg", noise)
    large = (tmp_path / "large.jpg").stat().st_size
    write_jpeg(tmp_path / "small.jpg", noise, max_bytes=large - 1)
    write_jpeg(tmp_path / "least.jpg", noise, max_bytes=1)
    sizes = [(tmp_path / name).stat().st_size for name in ("least.jpg", "small.jpg", "large.jpg")]
    assert sizes == sorted(set(sizes))
    with PIL.open(tmp_path / "least.jpg") as image:
        assert image.size == (64, 64)
