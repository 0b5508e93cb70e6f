"""A chunked prior: equal results with smaller batches."""

import pytest
import torch
from saved_bytes import saved_bytes

from nfsd3d.prior.chunked import ChunkedPrior, in_chunks, slices
from nfsd3d.prior.load_prior import load_prior
from nfsd3d.prior.lora import LoraNetwork
from nfsd3d.views.cameras import orbit


@pytest.fixture(params=["kl", "tiny"])
def prior(model_folder, device, request):
    return load_prior(model_folder(request.param), device)


def test_networks_get_chunks_of_a_batch_with_equal_results(prior):
    rng = torch.Generator().manual_seed(0)
    image = torch.rand(3, 3, 20, 20, generator=rng).to(prior.device)
    z, t = torch.randn(3, *prior.latent_shape, generator=rng).to(prior.device), torch.tensor([10, 500, 900])
    context = prior.embed(["a red cube", "dull", ""])
    expected = prior.encode(image), prior.decode(z), prior.predict_eps(z, t, context)
    chunks = in_chunks(prior, 2, False)
    counted = []
    with prior.denoiser.register_forward_pre_hook(lambda _, given: counted.append(len(given[0]))):
        results = chunks.encode(image), chunks.decode(z), chunks.predict_eps(z, t, context)
    for result, value in zip(results, expected, strict=True):
        torch.testing.assert_close(result, value, rtol=1e-4, atol=1e-4)
    assert counted == [2, 1]


def test_nothing_to_split_is_the_prior_itself(prior):
    assert in_chunks(prior, None, False) is prior
    assert isinstance(in_chunks(prior, None, True), ChunkedPrior)
    assert slices(5, 2) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert slices(2, None) == slices(2, 7) == [slice(0, 2)]


def test_a_checkpointed_encoder_keeps_less_and_has_the_same_gradient(prior):
    size = prior.image_size
    gradients, sizes = [], []
    for checkpoint in (False, True, False):
        image = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(prior.device)
        image.requires_grad_()
        z, kept = saved_bytes(lambda image=image, c=checkpoint: in_chunks(prior, None, c).encode(image))
        z.square().sum().backward()
        gradients.append(image.grad)
        sizes.append(kept)
    assert torch.equal(gradients[0], gradients[2]) and sizes[0] == sizes[2]
    torch.testing.assert_close(gradients[1], gradients[0])
    assert sizes[1] < 0.5 * sizes[0]


def test_a_lora_network_learns_the_same_in_chunks(prior):
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(3, *prior.latent_shape, generator=rng).to(prior.device)
    context, cameras = prior.embed(["a red cube"] * 3), orbit(3, 8)
    lora = LoraNetwork(prior, rank=2, learning_rate=1e-3, camera_dropout=0.0, seed=0)
    losses, gradients = [], []
    for rows in (None, 2):
        again = torch.Generator().manual_seed(1)
        losses.append(lora.learn(z, context, cameras, again, step=False, unet_batch_size=rows))
        gradients.append([p.grad.clone() for group in lora.optimizer.param_groups for p in group["params"]])
    torch.testing.assert_close(losses[1], losses[0])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    assert all(float(value.abs().max()) == 0 for name, value in lora.state_dict().items() if "lora_B" in name)
    eps = [lora.at(cameras, rows).predict_eps(z, torch.tensor([5, 50, 500]), context) for rows in (None, 1)]
    torch.testing.assert_close(eps[1], eps[0], rtol=1e-4, atol=1e-4)
