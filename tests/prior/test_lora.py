"""VSD's LoRA network: its training, and that the prior is unchanged."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from small_settings import PROMPTS

from nfsd3d.distill.gradient import predict_noise
from nfsd3d.distill.methods import METHODS
from nfsd3d.prior.load_prior import load_prior
from nfsd3d.prior.lora import LoraNetwork
from nfsd3d.views.cameras import orbit
from nfsd3d.views.prompts import PromptBank

TIMES = torch.tensor([3, 400, 990])
CAMERAS = orbit(3, 8)


@pytest.fixture(params=["epsilon", "v_prediction"])
def prior(request, model_folder, device):
    return load_prior(model_folder("tiny", request.param), device)


def make(prior, **options):
    options = {"rank": 4, "learning_rate": 1e-2, "camera_dropout": 0.1, "seed": 0, **options}
    return LoraNetwork(prior, **options)


def batch(prior, seed=0):
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(3, *prior.latent_shape, generator=rng).to(prior.device)
    return z, prior.embed(["a red cube"]).expand(3)


def train(lora, z, context, steps, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [float(lora.learn(z, context, CAMERAS, rng)) for _ in range(steps)]


def evaluations_of(prior):
    """The batch sizes of all calls of the prior's UNet, as a growing list."""
    sizes = []
    prior.denoiser.register_forward_pre_hook(lambda network, arguments: sizes.append(len(arguments[0])))
    return sizes


def test_the_prior_is_unchanged_bit_for_bit(prior):
    z, context = batch(prior)
    before = prior.predict_eps(z, TIMES, context)
    weights = {name: value.clone() for name, value in prior.denoiser.state_dict().items()}
    lora = make(prior)
    assert torch.equal(prior.predict_eps(z, TIMES, context), before)
    train(lora, z, context, 10)
    assert torch.equal(prior.predict_eps(z, TIMES, context), before)
    assert not torch.equal(lora.at(CAMERAS).predict_eps(z, TIMES, context), before)
    assert torch.equal(prior.predict_eps(z, TIMES, context), before)
    now = {name.replace(".base_layer", ""): value for name, value in prior.denoiser.state_dict().items()}
    assert all(torch.equal(now[name], value) for name, value in weights.items())


def test_an_untrained_lora_network_equals_the_prior_exactly(prior):
    z, context = batch(prior)
    before = prior.predict_eps(z, TIMES, context)
    assert torch.equal(make(prior).at(CAMERAS).predict_eps(z, TIMES, context), before)


def test_vsd_with_an_untrained_network_is_the_condition_direction(prior):
    z, _ = batch(prior)
    bank = PromptBank.build(prior, "a red cube", "dull", replace(PROMPTS, view_dependent=False), needed=["plain"])
    sizes = evaluations_of(prior)
    p = predict_noise(
        prior,
        z,
        TIMES,
        bank.contexts(CAMERAS),
        METHODS["vsd"],
        noise=z,
        threshold=200,
        lora=make(prior).at(CAMERAS),
    )
    assert sizes == [6, 3]
    torch.testing.assert_close(METHODS["vsd"].function(p, 7.5), 6.5 * (p.cond - p.uncond), rtol=1e-3, atol=1e-4)


def test_the_lora_network_learns_its_training_images(prior):
    z, context = batch(prior)
    lora = make(prior)
    t = torch.tensor([200, 400, 600])
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(5)).to(z.device)
    z_t = prior.schedule.add_noise(z, noise, t)

    def error():
        return float((lora.at(CAMERAS).predict_eps(z_t, t, context) - noise).square().mean())

    before = error()
    losses = train(lora, z, context, 60)
    assert min(losses) > 0 and error() < 0.9 * before


def test_the_lora_networks_predictions_depend_on_the_camera(prior):
    z, context = batch(prior)
    lora = make(prior, camera_dropout=0.0)
    train(lora, z, context, 10)
    here, there = (lora.at(orbit(3, 8, elevation)).predict_eps(z, TIMES, context) for elevation in (0.0, 80.0))
    assert not torch.equal(here, there)


def test_camera_dropout_trains_only_the_biases(prior):
    z, context = batch(prior)
    lora = make(prior, camera_dropout=1.0)
    before = {name: value.clone() for name, value in lora.state_dict().items()}
    train(lora, z, context, 3)
    after = lora.state_dict()
    assert torch.equal(after["camera.0.weight"], before["camera.0.weight"])
    assert not torch.equal(after["camera.2.bias"], before["camera.2.bias"])


def test_only_the_adaptation_adds_parameters(prior):
    base = {name: value.data_ptr() for name, value in prior.denoiser.named_parameters()}
    lora = make(prior, rank=2)
    now = {name.replace(".base_layer", ""): value for name, value in prior.denoiser.named_parameters()}
    assert all(now[name].data_ptr() == pointer for name, pointer in base.items())
    assert {name for name in now if name not in base} == {
        name for name in lora.state_dict() if not name.startswith("camera.")
    }
    adapted = sum(value.numel() for name, value in lora.state_dict().items() if "lora" in name)
    assert 0 < adapted < 0.2 * sum(value.numel() for name, value in now.items() if name in base)


def test_only_the_adaptation_trains(prior):
    z, context = batch(prior)
    lora = make(prior)
    train(lora, z, context, 2)
    trained = {id(parameter) for group in lora.optimizer.param_groups for parameter in group["params"]}
    assert len(trained) == len(lora.state_dict())
    for name, parameter in prior.denoiser.named_parameters():
        assert (id(parameter) in trained) == ("lora" in name)
        assert parameter.grad is None or id(parameter) in trained


def test_a_training_step_is_one_evaluation_of_each_latent(prior):
    z, context = batch(prior)
    sizes = evaluations_of(prior)
    train(make(prior), z, context, 2)
    assert sizes == [3, 3]


def test_a_restored_network_trains_on_bit_identically(model_folder):
    def load():
        prior = load_prior(model_folder("tiny"))
        return make(prior), *batch(prior)

    original, z, context = load()
    train(original, z, context, 3)
    restored, _, _ = load()
    restored.load_state_dict(original.state_dict())
    restored.optimizer.load_state_dict(deepcopy(original.optimizer.state_dict()))
    assert train(restored, z, context, 3, seed=1) == train(original, z, context, 3, seed=1)
    assert all(torch.equal(value, original.state_dict()[name]) for name, value in restored.state_dict().items())


def test_the_seed_decides_and_the_global_generator_is_unchanged(model_folder):
    def initial(seed):
        prior = load_prior(model_folder("tiny"))
        before = torch.get_rng_state()
        state = make(prior, seed=seed).state_dict()
        assert torch.equal(torch.get_rng_state(), before)
        return state

    one, same, other = initial(0), initial(0), initial(1)
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert not torch.equal(one["camera.0.weight"], other["camera.0.weight"])


def test_in_half_precision_the_adaptation_still_trains_in_full(model_folder):
    prior = load_prior(model_folder("tiny"), dtype=torch.bfloat16)
    z, context = batch(prior)
    before = prior.predict_eps(z, TIMES, context)
    lora = make(prior, learning_rate=1e-5)
    start = {name: value.clone() for name, value in lora.state_dict().items()}
    train(lora, z, context, 2)
    assert {value.dtype for value in lora.state_dict().values()} == {torch.float32}
    moved = [name for name, value in lora.state_dict().items() if not torch.equal(value, start[name])]
    assert any("lora_B" in name for name in moved)
    assert torch.equal(prior.predict_eps(z, TIMES, context), before)
