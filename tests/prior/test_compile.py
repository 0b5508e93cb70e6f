"""Compiled networks give the same numbers, with few shapes. The compilers' back ends are not tested."""

import pytest
import torch
from small_settings import PROMPTS

from nfsd3d.distill.gradient import predict_noise
from nfsd3d.distill.methods import METHODS
from nfsd3d.prior.compiled.shapes import padded_batch_size
from nfsd3d.prior.load_prior import load_prior
from nfsd3d.prior.lora import LoraNetwork
from nfsd3d.views.cameras import orbit
from nfsd3d.views.prompts import PromptBank

# The compiler looks at what it must not, and hides the warning, which pytest makes an error before.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _nothing_stays_compiled():
    yield
    torch.compiler.reset()


def test_batches_are_padded_to_few_sizes():
    # NFSD with four views: two shapes, whatever the timesteps.
    assert {padded_batch_size(count, 4) for count in range(8, 13)} == {8, 12}
    assert {padded_batch_size(count, 1) for count in (2, 3)} == {2, 3}
    assert [padded_batch_size(count, 4) for count in (1, 2, 3, 4)] == [1, 2, 4, 4]
    assert [padded_batch_size(count, 4, 6) for count in (1, 3, 5, 6, 7)] == [1, 4, 6, 6, 7]  # never beyond what fits
    assert [padded_batch_size(count, 3) for count in (1, 2, 3, 4)] == [1, 2, 3, 6]


def test_a_compiled_prior_gives_the_same_numbers(model_folder, monkeypatch):
    prior = load_prior(model_folder("kl", "v_prediction"))
    rng = torch.Generator().manual_seed(0)
    z_t, noise = torch.randn(2, 4, *prior.latent_shape, generator=rng)
    t, size = torch.tensor([30, 199, 200, 950]), prior.image_size
    contexts = PromptBank.build(prior, "a red cube", "dull", PROMPTS).contexts(orbit(4, 8))
    image = torch.rand(2, 3, size, size, generator=rng)

    def results():
        p = predict_noise(prior, z_t, t, contexts, METHODS["nfsd"], noise=noise, threshold=200)
        pixels = image.clone().requires_grad_()
        z = prior.encode(pixels)
        z.square().sum().backward()
        return p.cond, p.uncond, p.neg, z.detach(), pixels.grad

    expected = results()
    prior.compile(batch_unit=4, backend="aot_eager")
    shapes, compiled = [], prior._predictor.fast.run
    monkeypatch.setattr(prior._predictor.fast, "run", lambda z, *rest: (
        shapes.append(len(z)) or compiled(z, *rest)
    ))  # fmt: skip
    for result, value in zip(results(), expected, strict=True):
        torch.testing.assert_close(result, value, rtol=1e-3, atol=1e-4)
    assert shapes == [12]  # ten batch entries needed, two of padding
    # Peers, precisions and predictions of memory begin from networks as they are.
    assert (
        prior.without_weights()._predictor.fast is None
        and prior.in_precision(torch.float64)._autoencoder._compiled is None
    )
    prior.in_precision(torch.float32).compile_nothing()


@pytest.mark.parametrize("name", ["ism", "sdi"])
def test_inversions_work_with_a_fast_denoiser(model_folder, name):
    prior = load_prior(model_folder("tiny"))
    z = torch.randn(2, *prior.latent_shape, generator=torch.Generator().manual_seed(0))
    t, contexts = torch.tensor([150, 420]), PromptBank.build(prior, "a red cube", "dull", PROMPTS).contexts(orbit(2, 8))
    noised = []
    for compiled in (False, True):
        if compiled:
            prior.compile(batch_unit=2, backend="eager")
        rng = torch.Generator().manual_seed(1)
        noised.append(METHODS[name].noising(prior, z, t, contexts, rng))
    for one, other in zip(*noised, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-3)


def test_vsds_lora_network_works_beside_a_compiled_encoder(model_folder):
    prior = load_prior(model_folder("tiny"))
    lora = LoraNetwork(prior, rank=2, learning_rate=1e-2, camera_dropout=0.0, seed=0)
    z, t = torch.randn(2, *prior.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([50, 500])
    context, cameras = prior.embed(["a red cube"] * 2), orbit(2, 8)
    base = prior.predict_eps(z, t, context)
    prior.compile(batch_unit=2, unet=False, backend="eager")
    lora.learn(z, context, cameras, torch.Generator().manual_seed(2))
    assert torch.equal(prior.predict_eps(z, t, context), base)
    assert not torch.equal(lora.at(cameras).predict_eps(z, t, context), base)
