"""DDIM inversion of ISM and SDI, against slow loops over one latent at a time."""

import itertools
import math

import pytest
import torch
from analytic_prior import AnalyticPrior

from nfsd3d.distill.gradient import predict_noise
from nfsd3d.distill.methods import METHODS, RandomNoise
from nfsd3d.distill.noising import IntervalNoise, InversionNoise, ddim_invert
from nfsd3d.guidance import guided
from nfsd3d.prior.base import CountedPrior
from nfsd3d.prior.schedule import VariancePreserving

NOISINGS = {"random": RandomNoise(), "interval": IntervalNoise(), "inversion": InversionNoise()}
SIZE = 2
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def make_prior(training_steps=1000):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, training_steps, dtype=torch.float64) ** 2 * 1000 / training_steps
    means = torch.tensor([0.8, -0.8], dtype=torch.float64)[:, None, None, None].expand(2, 3, SIZE, SIZE)
    prompts = {"bright": [1, 0], "": [0.5, 0.5]}
    return AnalyticPrior(
        means,
        torch.tensor([0.1, 0.3], dtype=torch.float64),
        {prompt: torch.tensor(weights, dtype=torch.float64) for prompt, weights in prompts.items()},
        VariancePreserving(torch.cumprod(1 - betas, dim=0)),
    )


def setting(times, training_steps=1000):
    prior = make_prior(training_steps)
    z = 0.5 * torch.randn(len(times), 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    contexts = {"cond": prior.embed(["bright"]), "uncond": prior.embed([""])}
    contexts = {name: context.expand(len(times)) for name, context in contexts.items()}
    return CountedPrior(prior), z, torch.tensor(times), contexts


def step(prior, z, eps, t, t_next):
    """One DDIM step of one latent, written out."""
    here, there = prior.schedule.alphas_cumprod[t], prior.schedule.alphas_cumprod[t_next]
    return there**0.5 * (z - (1 - here) ** 0.5 * eps) / here**0.5 + (1 - there) ** 0.5 * eps


def eps_of(prior, z, t, scale):
    both = [prior.predict_eps(z, torch.tensor([t]), prior.embed([prompt])) for prompt in ("", "bright")]
    return both[0] + scale * (both[1] - both[0])


@pytest.mark.parametrize(
    ("training_steps", "stride", "interval", "times"),
    [(1000, 200, 50, [999, 0, 30, 50, 51, 250, 251, 640]), (100, 20, 5, [99, 2, 64]), (50, 10, 2, [49, 0, 30])],
)
def test_interval_noise_by_hand_in_a_batch_of_mixed_timesteps(training_steps, stride, interval, times):
    prior, z, t, contexts = setting(times, training_steps)
    z_t, target = IntervalNoise()(prior, z, t, contexts, torch.Generator())
    evaluations = prior.evaluations
    expected_evaluations = 0
    for row, end in enumerate(times):
        s, here, latent = max(end - interval, 0), 0, z[row : row + 1]
        while here < s:
            after = min(here + stride, s)
            latent = step(prior, latent, eps_of(prior, latent, here, 0.0), here, after)
            here = after
            expected_evaluations += 1
        eps = eps_of(prior, latent, s, 0.0)
        expected_evaluations += 1
        torch.testing.assert_close(target[row : row + 1], eps, **CLOSE)
        torch.testing.assert_close(z_t[row : row + 1], step(prior, latent, eps, s, end), **CLOSE)
    assert evaluations == expected_evaluations == sum(math.ceil(max(end - interval, 0) / stride) + 1 for end in times)


@pytest.mark.parametrize(
    ("training_steps", "grid", "times"),
    [(1000, 100, [999, 0, 1, 100, 101, 640]), (100, 10, [99, 10, 64]), (50, 5, [49, 0, 31]), (20, 2, [19, 0, 7])],
)
@pytest.mark.parametrize("eta", [0.0, 0.3])
def test_inverted_noise_by_hand_in_a_batch_of_mixed_timesteps(training_steps, grid, times, eta):
    prior, z, t, contexts = setting(times, training_steps)
    z_t, kappa = InversionNoise(eta=eta)(prior, z, t, contexts, torch.Generator().manual_seed(3))
    evaluations, expected_evaluations = prior.evaluations, 0
    rng = torch.Generator().manual_seed(3)
    beyond = torch.randint(0, grid, t.shape, generator=rng)
    jumps = [torch.randn(z.shape, generator=rng) for _ in range(math.ceil(max(1, *times) / grid))]
    bars = prior.schedule.alphas_cumprod
    for row, middle in enumerate(times):
        end = min(max(middle + int(beyond[row]), 1), training_steps - 1)
        path = [*range(0, max(middle, 1), grid), end]
        latent = z[row : row + 1]
        for index, (here, after) in enumerate(itertools.pairwise(path)):
            latent = step(prior, latent, eps_of(prior, latent, here, -6.5), here, after)
            variance = (1 - bars[here]) / (1 - bars[after]) * (1 - bars[after] / bars[here])
            latent = latent + eta * variance**0.5 * jumps[index][row : row + 1]
            expected_evaluations += 2
        noise = (latent - bars[end] ** 0.5 * z[row]) / (1 - bars[end]) ** 0.5
        torch.testing.assert_close(kappa[row : row + 1], noise, rtol=1e-6, atol=1e-6)
        renoised = bars[middle] ** 0.5 * z[row] + (1 - bars[middle]) ** 0.5 * noise[0]
        torch.testing.assert_close(z_t[row], renoised, rtol=1e-6, atol=1e-6)
    assert evaluations == expected_evaluations
    if training_steps == 1000:
        assert evaluations <= sum(2 * (math.ceil(end / 100) + 1) for end in times)


def test_random_noise_is_drawn_in_the_order_of_the_latents():
    prior, z, t, contexts = setting([5, 600])
    z_t, noise = RandomNoise()(prior, z.float(), t, contexts, torch.Generator().manual_seed(7))
    assert torch.equal(noise, torch.randn(z.shape, generator=torch.Generator().manual_seed(7)))
    assert torch.equal(z_t, prior.schedule.add_noise(z.float(), noise, t)) and prior.evaluations == 0


@pytest.mark.parametrize("name", NOISINGS)
def test_noisings_repeat_with_the_seed_and_follow_a_permutation(name):
    prior, z, t, contexts = setting([40, 900, 333])
    first = NOISINGS[name](prior, z, t, contexts, torch.Generator().manual_seed(0))
    again = NOISINGS[name](prior, z, t, contexts, torch.Generator().manual_seed(0))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    if name == "interval":  # the others draw from rng in the order of the batch
        order = torch.tensor([2, 0, 1])
        shuffled = NOISINGS[name](prior, z[order], t[order], contexts, torch.Generator().manual_seed(0))
        torch.testing.assert_close(shuffled[0], first[0][order], **CLOSE)


@pytest.mark.parametrize("name", NOISINGS)
@pytest.mark.parametrize("training_steps", [1000, 50, 10])
def test_the_expected_nfe_of_a_noising_is_what_it_spends(name, training_steps):
    noising = NOISINGS[name]
    for t in range(0, training_steps, max(1, training_steps // 25)):
        prior, z, times, contexts = setting([t], training_steps)
        noising(prior, z, times, contexts, torch.Generator().manual_seed(t))
        assert prior.evaluations == int(noising.nfe(times, training_steps))


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("ism", lambda t: math.ceil(max(t - 50, 0) / 200) + 3),
        ("sdi", lambda t: 2 * (math.ceil(t / 100) + 1) + 2),
    ],
)
@pytest.mark.parametrize("t", [0, 20, 50, 251, 500, 999])
def test_a_whole_step_costs_no_more_than_the_method_needs(name, most, t):
    prior, z, times, contexts = setting([t])
    method = METHODS[name]
    z_t, noise = method.noising(prior, z, times, contexts, torch.Generator().manual_seed(0))
    predict_noise(prior, z_t, times, contexts, method, noise=noise, threshold=200)
    assert prior.evaluations <= most(t)
    if name == "ism":
        assert prior.evaluations == most(t)


def test_interval_score_matching_is_the_papers_gradient():
    """eps_cfg(x_t) - eps_uncond(x_s)."""
    prior, z, t, contexts = setting([500])
    method = METHODS["ism"]
    z_t, target = method.noising(prior, z, t, contexts, torch.Generator())
    p = predict_noise(prior, z_t, t, contexts, method, noise=target, threshold=200)
    uncond, cond = (eps_of(prior, z_t, 500, scale) for scale in (0.0, 1.0))
    torch.testing.assert_close(method.function(p, 7.5), guided(uncond, cond, 7.5) - target)


def test_inversion_and_sampling_along_the_same_fine_steps_come_back():
    prior, z, t, contexts = setting([900, 400])
    times = [t * index // 900 for index in range(901)]

    def predict(z_t, t, rows):
        return prior.predict_eps(z_t, t, contexts["cond"][rows])

    latent = ddim_invert(prior.schedule, z, times, predict)
    assert (latent - z).abs().max() > 0.3
    for here, after in zip(times[:0:-1], times[-2::-1], strict=True):
        eps = predict(latent, here, torch.arange(2))
        latent = torch.cat([step(prior, latent[i : i + 1], eps[i : i + 1], here[i], after[i]) for i in range(2)])
    assert (latent - z).abs().max() < 0.1


def test_latents_whose_timestep_stays_cost_nothing():
    prior, z, _, _ = setting([1, 2, 3])
    seen = []

    def predict(z_t, t, rows):
        seen.append((t.tolist(), rows.tolist()))
        return torch.zeros_like(z_t)

    times = [torch.tensor([0, 5, 9]), torch.tensor([10, 5, 20]), torch.tensor([10, 5, 30])]
    moved = ddim_invert(prior.schedule, z, times, predict)
    assert seen == [([0, 9], [0, 2]), ([20], [2])]
    assert torch.equal(moved[1], z[1]) and not torch.equal(moved[0], z[0])


def test_inversion_carries_no_gradient():
    prior, z, t, contexts = setting([300])
    for noising in NOISINGS.values():
        assert not any(x.requires_grad for x in noising(prior, z.detach(), t, contexts, torch.Generator()))


def test_a_timestep_is_at_least_one_training_step():
    assert InversionNoise().nfe(torch.tensor([0, 1, 2, 9]), 10).tolist() == [2, 2, 4, 18]
    assert IntervalNoise().nfe(torch.tensor([0, 1, 2]), 4).tolist() == [1, 1, 2]


def test_a_pair_of_equal_timesteps_moves_nothing_and_the_inversion_goes_on():
    prior, z, _, contexts = setting([0, 0])

    def predict(z_t, t, entries):
        return prior.predict_eps(z_t, t, contexts["uncond"][entries])

    times = [torch.tensor([0, 0]), torch.tensor([200, 300])]
    paused = [times[0], times[0], *times[1:], times[1]]
    direct = ddim_invert(prior.schedule, z, times, predict)
    assert not torch.equal(direct, z) and torch.equal(ddim_invert(prior.schedule, z, paused, predict), direct)
