"""The encoder rewritten for torch.compile: same results, image gradient and weights as the autoencoder's."""

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn

from nfsd3d.prior.compiled.encoder import frozen_encoder


@pytest.fixture
def vae():
    """Two stages, normalisation with scale and shift, a strided convolution, and attention in the middle."""
    torch.manual_seed(0)
    found = AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
    )
    for module in found.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias, 0.0, 0.3)
    return found.eval().requires_grad_(False)


def encoded(vae, image):
    """The latent, and the gradient of something uneven of it to the image."""
    pixels = image.clone(memory_format=torch.preserve_format).requires_grad_()
    latent = vae.encode(pixels).latent_dist.mean
    (latent * torch.linspace(-1, 1, latent.numel(), dtype=latent.dtype).reshape(latent.shape)).sum().backward()
    return latent.detach(), pixels.grad


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (15, 22)])
def test_numbers_are_the_autoencoders(vae, layout, height, width):
    vae = vae.double().to(memory_format=layout)
    image = torch.rand(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    image = image.to(memory_format=layout)
    # Normalisation is in float32, whatever comes in.
    for one, other in zip(encoded(frozen_encoder(vae), image), encoded(vae, image), strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


def test_layouts_stay_as_they_are(vae):
    frozen = frozen_encoder(vae.to(memory_format=torch.channels_last))
    seen = []
    for module in frozen.encoder.modules():
        if isinstance(module, (nn.GroupNorm, nn.Conv2d)):
            module.register_forward_hook(lambda module, given, result: seen.append(result))
            module.register_full_backward_hook(lambda module, to_input, to_result: seen.extend(to_input))
    image = torch.rand(2, 3, 16, 16).to(memory_format=torch.channels_last).requires_grad_()
    frozen.encode(image).latent_dist.mean.sum().backward()
    images = [tensor for tensor in seen if tensor.ndim == 4]
    assert len(images) > 20
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in images)


def test_weights_are_shared_and_the_autoencoder_is_unchanged(vae):
    before = {name: type(module) for name, module in vae.named_modules()}
    frozen = frozen_encoder(vae)
    assert {name: type(module) for name, module in vae.named_modules()} == before
    for name, value in vae.state_dict().items():
        assert frozen.state_dict()[name].data_ptr() == value.data_ptr(), name
    with torch.no_grad():
        vae.encoder.conv_in.weight.zero_()
        image = torch.rand(1, 3, 16, 16)
        assert torch.equal(frozen.encode(image).latent_dist.mean, frozen.encode(image / 2).latent_dist.mean)


def test_no_convolution_keeps_its_input(vae):
    frozen = frozen_encoder(vae)
    convolutions = [
        module for module in (*frozen.encoder.modules(), frozen.quant_conv) if isinstance(module, nn.Conv2d)
    ]
    assert len(convolutions) > 10
    for convolution in convolutions:
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor, kept=kept: kept.append(tensor.shape) or tensor,
                                                      lambda tensor: tensor):  # fmt: skip
            convolution(torch.rand(1, convolution.in_channels, 16, 16).requires_grad_())
        assert kept == [convolution.weight.shape]


def test_an_autoencoder_without_a_last_convolution_works_too():
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, use_quant_conv=False, use_post_quant_conv=False)
    vae = vae.eval().requires_grad_(False)
    image = torch.rand(1, 3, 16, 16)
    for one, other in zip(encoded(frozen_encoder(vae), image), encoded(vae, image), strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


def test_the_frozen_encoder_ignores_the_autoencoders_checkpointing(vae):
    vae.enable_gradient_checkpointing()
    assert not frozen_encoder(vae).encoder.gradient_checkpointing and vae.encoder.gradient_checkpointing


def test_another_kind_of_autoencoder_is_returned_unchanged():
    tiny = AutoencoderTiny(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
                           num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))  # fmt: skip
    assert frozen_encoder(tiny) is tiny
