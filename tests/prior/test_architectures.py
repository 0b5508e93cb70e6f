"""Stable Diffusion in full size without weights: the published sizes, and the arithmetic that follows from them."""

import pytest
import torch

from nfsd3d.bench.flops import arithmetic
from nfsd3d.prior.architectures import ARCHITECTURES, Architecture, random_networks, random_prior
from nfsd3d.prior.files.locate import ALIASES


def small_architecture() -> Architecture:
    """Stable Diffusion's layout, narrow."""
    full, narrow = ARCHITECTURES["sd21"], {"block_out_channels": (32, 32, 64, 64)}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    unet = {**full.unet, **narrow, "attention_head_dim": 8, "cross_attention_dim": 32}
    return Architecture(unet, {**full.text_encoder, **text}, full.prediction_type, {**full.vae, **narrow})


def millions(network):
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6


@pytest.mark.parametrize(("name", "unet", "text"), [("sd15", 859.5, 123.1), ("sd21", 865.9, 340.4),
                                                    ("sd21-768", 865.9, 340.4)])  # fmt: skip
def test_parameter_counts_are_the_published_ones(name, unet, text):
    networks = random_networks(name, "meta", torch.float16)
    assert [millions(network) for network in networks] == pytest.approx([unet, 83.65, text], abs=0.05)
    assert {parameter.dtype for network in networks for parameter in network.parameters()} == {torch.float16}
    assert all(parameter.is_meta for network in networks for parameter in network.parameters())


def test_every_preset_has_its_architecture():
    assert ARCHITECTURES.keys() == ALIASES.keys()


def test_the_arithmetic_is_the_known_one():
    counted = arithmetic("sd21", 512)
    assert counted.unet == pytest.approx(0.804, abs=1e-3)
    assert (counted.encode, counted.backward) == pytest.approx((1.117, 1.151), abs=1e-3)
    assert counted.decode == pytest.approx(2.515, abs=1e-3)
    assert counted.step(3, 1) == pytest.approx(4.68, abs=0.01)


def test_a_prior_without_weights_has_shapes():
    prior = random_prior("sd21-768", "meta", torch.bfloat16)
    assert (prior.image_size, prior.latent_shape) == (768, (4, 96, 96))
    context = prior.embed(["a red cube", ""])
    shape = context.tensors["embeddings"].shape
    assert shape == (2, 77, 1024) and context.tensors["embeddings"].dtype == torch.float32
    assert random_prior("sd15", "meta", image_size=128).latent_shape == (4, 16, 16)


def test_random_weights_neither_vanish_nor_grow(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "tiny", small_architecture())
    prior = random_prior("tiny", image_size=64, seed=3)
    z = prior.encode(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    eps = prior.predict_eps(torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), prior.embed(["a red cube", "dull"]))
    image = prior.decode(z)
    assert z.isfinite().all() and 1e-3 < z.std() < 1e3
    assert eps.isfinite().all() and 1e-2 < eps.std() < 1e2
    assert image.shape == (1, 3, 64, 64) and image.isfinite().all()
    again = random_prior("tiny", image_size=64, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(prior.denoiser.parameters(), again.denoiser.parameters(), strict=True))
