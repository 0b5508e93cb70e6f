"""Textures are read as graphics hardware reads them, from a pyramid of averages."""

import pytest
import torch
import torch.nn.functional as F

from nfsd3d.generators.mesh.texture import Pyramid


def test_small_pixels_read_the_texture_bilinearly():
    rng = torch.Generator().manual_seed(0)
    texture, uv = torch.rand(12, 12, 3, generator=rng).double(), torch.rand(200, 2, generator=rng).double()
    grid = (uv * 2 - 1)[None, None]
    expected = F.grid_sample(
        texture.permute(2, 0, 1)[None], grid, mode="bilinear", padding_mode="border", align_corners=False
    )[0, :, 0].T
    torch.testing.assert_close(Pyramid(texture).sample(uv, torch.full((200,), 0.01)), expected)


def test_larger_pixels_read_weighted_means():
    texture = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0))
    pyramid, centre = Pyramid(texture), torch.tensor([[5 / 64, 9 / 64]])  # of texel (2, 4) of the next level
    weights = torch.tensor([1.0, 3, 3, 1]) / 8
    averaged = torch.einsum("rcd,r,c->d", texture[7:11, 3:7], weights, weights)
    torch.testing.assert_close(pyramid.sample(centre, torch.tensor([2 / 64]))[0], averaged)
    torch.testing.assert_close(pyramid.sample(centre, torch.tensor([9.0]))[0], texture.mean((0, 1)), atol=0.05, rtol=0)


def test_the_gradient_of_a_large_pixel_is_smooth():
    texture = torch.zeros(32, 32, 1, requires_grad=True)
    Pyramid(texture).sample(torch.tensor([[0.5, 0.5]]), torch.tensor([8 / 32])).sum().backward()
    along = texture.grad[16, :, 0]
    assert along.max() == along[15:17].max() and (along > 0).sum() > 20
    assert along.diff().abs().max() < 0.25 * along.max()


def test_between_levels_is_between_their_colours():
    texture = torch.rand(16, 16, 3, generator=torch.Generator().manual_seed(0))
    pyramid, place = Pyramid(texture), torch.tensor([[0.3, 0.6]])
    finer, coarser, between = (pyramid.sample(place, torch.tensor([side / 16])) for side in (2.0, 4.0, 2 * 2**0.5))
    torch.testing.assert_close(between, (finer + coarser) / 2)


@pytest.mark.parametrize("size", [1, 5, 6, 8])
def test_every_size_of_a_plain_texture_is_plain(size):
    texture = torch.full((size, size, 3), 0.25)
    colours = Pyramid(texture).sample(torch.rand(50, 2), torch.linspace(1e-6, 4, 50))
    torch.testing.assert_close(colours, torch.full((50, 3), 0.25))


def test_gradients_with_respect_to_texels_and_places():
    rng = torch.Generator().manual_seed(0)
    texture = torch.rand(8, 8, 2, generator=rng, dtype=torch.float64, requires_grad=True)
    uv = (torch.rand(6, 2, generator=rng, dtype=torch.float64) * 0.8 + 0.1).requires_grad_()
    footprint = torch.rand(6, generator=rng, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda texture, uv: Pyramid(texture).sample(uv, footprint), (texture, uv))
