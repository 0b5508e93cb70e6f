"""Sharpness and contrast of blurred and flattened images."""

import pytest
import torch
import torch.nn.functional as F

from nfsd3d.evaluate.sharpness import compare_appearance


@pytest.fixture
def rendered():
    torch.manual_seed(0)
    image = F.interpolate(torch.rand(2, 3, 8, 8), size=(64, 64), mode="nearest")
    mask = torch.zeros(2, 1, 64, 64)
    mask[:, :, 8:56, 8:56] = 1
    return image, mask


def test_the_truth_itself_has_ratio_one(rendered):
    image, mask = rendered
    result = compare_appearance(image, mask, image, mask)
    assert result.sharpness == pytest.approx(1) and result.contrast == pytest.approx(1)


def test_blur_lowers_sharpness_and_flattening_lowers_contrast(rendered):
    image, mask = rendered
    blurred = F.avg_pool2d(F.pad(image, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    softer = compare_appearance(blurred, mask, image, mask)
    assert softer.sharpness < 0.9
    flat = compare_appearance(0.5 + 0.5 * (image - 0.5), mask, image, mask)
    assert flat.contrast == pytest.approx(0.5, abs=1e-3) and flat.sharpness == pytest.approx(0.5, abs=1e-3)


def test_sharpness_ignores_pixels_outside_the_object(rendered):
    image, mask = rendered
    noisy = torch.where(mask > 0, image, torch.rand_like(image))
    assert compare_appearance(noisy, mask, image, mask).sharpness == pytest.approx(1)


def test_an_empty_view_has_none(rendered):
    image, mask = rendered
    result = compare_appearance(image, torch.zeros_like(mask), image, mask)
    assert result.sharpness == 0 and result.contrast == 0
