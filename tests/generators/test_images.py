"""A batch of images as a generator: latents and pixels, independent of the camera."""

import pytest
import torch

from nfsd3d.generators.base import Images, Latents, Rendering, RenderOptions
from nfsd3d.generators.images import ImageBatch
from nfsd3d.views.cameras import orbit


@pytest.mark.parametrize(("kind", "shape"), [("latent", (3, 4, 8, 8)), ("image", (3, 3, 16, 16))])
def test_every_camera_sees_its_own_image(kind, shape, rng):
    initial = torch.rand(shape, generator=rng)
    images = ImageBatch(kind, initial)
    seen = images.render(
        orbit(3, 99), rng, RenderOptions(background=torch.zeros(3, 3), shading="lambertian", normals=True)
    )
    assert not isinstance(seen, Rendering)  # neither opacity nor depth
    values = seen.latent if isinstance(seen, Latents) else seen.image
    assert isinstance(seen, Latents) == (kind == "latent")
    torch.testing.assert_close(values, initial)
    values[1].sum().backward()
    assert images.parameter_groups()[kind][0].grad.flatten(1).sum(1).count_nonzero() == 1
    with pytest.raises(ValueError, match="2 cameras for 3 images"):
        images.render(orbit(2, 16))


def test_pixels_are_brought_back_into_their_range_and_latents_are_not(rng):
    outside = torch.tensor([-0.5, 0.25, 1.5]).reshape(1, 3, 1, 1)
    for kind, expected in (("image", [0, 0.25, 1]), ("latent", [-0.5, 0.25, 1.5])):
        images = ImageBatch(kind, outside)
        images.update(0, rng)
        assert images.values.flatten().tolist() == expected


def test_the_state_is_the_images(rng):
    source, copy = (ImageBatch("image", torch.rand(2, 3, 4, 4, generator=rng)) for _ in range(2))
    copy.load_state_dict(source.state_dict())
    shown = copy.show()
    assert isinstance(shown, Images) and torch.equal(shown.image, source.values) and copy.device.type == "cpu"
