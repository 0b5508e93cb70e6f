"""The quality of a prior: reconstruction and samples of the embedded one, in small."""

import pytest
import torch

from nfsd3d.evaluate.score_prior import held_out_requests, reconstruction_psnr
from nfsd3d.shapes.world.grammar import VIEWS, held_out
from nfsd3d.shapes.world.objects import OBJECTS


class _Rounding:
    """An autoencoder that keeps 1/8 steps of each pixel."""

    device = torch.device("cpu")

    def encode(self, image):
        return (image * 8).round()

    def decode(self, z):
        return z / 8


def test_psnr_is_that_of_the_error():
    torch.manual_seed(0)
    images = torch.rand(10, 3, 16, 16)
    error = (images - (images * 8).round() / 8).square().mean((1, 2, 3))
    assert reconstruction_psnr(_Rounding(), images, batch=4) == pytest.approx((-10 * error.log10()).mean().item())


def test_requests_are_held_out_and_ask_for_views_that_mean_something():
    requests = held_out_requests()
    assert {composition for composition, _ in requests} == set(held_out())
    assert len(requests) * 3 >= 500  # over the three guidance scales
    assert {view for c, view in requests if OBJECTS[c.object].has_front} == {"", *VIEWS}
    assert len(requests) == len(set(requests))
