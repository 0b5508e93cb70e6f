import pytest
import torch
from analytic_prior import AnalyticPrior
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from nfsd3d.prior.base import CountedPrior
from nfsd3d.prior.sampling import ddim_sample
from nfsd3d.prior.schedule import VariancePreserving

WEIGHTS = {"": [0.3, 0.7], "mostly left": [0.95, 0.05], "left": [1.0, 0.0], "right": [0.0, 1.0]}


def make_prior(size=1):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    means = torch.tensor([-1.0, 1.0], dtype=torch.float64)[:, None, None, None].expand(2, 3, size, size)
    return AnalyticPrior(
        means,
        torch.tensor([0.2, 0.4], dtype=torch.float64),
        {prompt: torch.tensor(weights, dtype=torch.float64) for prompt, weights in WEIGHTS.items()},
        VariancePreserving(torch.cumprod(1 - betas, dim=0)),
    )


@pytest.mark.parametrize("prompt", ["", "mostly left"])
@pytest.mark.parametrize("t", [0, 50, 200, 600, 999])
def test_prediction_is_the_score_of_the_noised_mixture(prompt, t):
    prior = make_prior(size=2)
    z_t = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(t), dtype=torch.float64, requires_grad=True)
    alpha_bar = prior.schedule.alphas_cumprod[t]
    spread = (alpha_bar * torch.tensor([0.2, 0.4], dtype=torch.float64) ** 2 + 1 - alpha_bar).sqrt()
    centres = alpha_bar.sqrt() * torch.tensor([-1.0, 1.0], dtype=torch.float64)
    mixture = MixtureSameFamily(
        Categorical(torch.tensor(WEIGHTS[prompt], dtype=torch.float64)),
        Independent(Normal(centres[:, None].expand(2, 12), spread[:, None].expand(2, 12)), 1),
    )
    (score,) = torch.autograd.grad(mixture.log_prob(z_t.flatten(1)).sum(), z_t)
    eps = prior.predict_eps(z_t, torch.full((6,), t), prior.embed([prompt] * 6))
    torch.testing.assert_close(eps, -((1 - alpha_bar) ** 0.5) * score, rtol=1e-9, atol=1e-9)


def test_prediction_of_a_single_gaussian_is_linear():
    prior = make_prior(size=2)
    t = torch.tensor([0, 300, 999])
    z_t = torch.randn(3, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha, sigma = prior.schedule.alpha_sigma(t, z_t)
    expected = sigma * (z_t - alpha) / (alpha**2 * 0.4**2 + sigma**2)
    torch.testing.assert_close(prior.predict_eps(z_t, t, prior.embed(["right"] * 3)), expected)


def test_ddim_converges_to_the_mixture():
    prior = make_prior()
    count = 3000
    samples = ddim_sample(
        prior,
        prior.embed([""] * count),
        prior.embed([""]),
        guidance_scale=1.0,
        steps=200,
        rng=torch.Generator().manual_seed(0),
    )
    left = samples.mean((1, 2, 3)) < 0
    assert left.double().mean().item() == pytest.approx(0.3, abs=0.04)
    for side, mean, std in ((left, -1.0, 0.2), (~left, 1.0, 0.4)):
        assert samples[side].mean().item() == pytest.approx(mean, abs=0.03)
        assert samples[side].std().item() == pytest.approx(std, abs=0.03)


def test_conditional_and_guided_samples_are_of_the_condition():
    prior = make_prior()
    for scale in (1.0, 3.0):
        samples = ddim_sample(
            prior,
            prior.embed(["right"] * 200),
            prior.embed([""]),
            guidance_scale=scale,
            steps=50,
            rng=torch.Generator().manual_seed(1),
        )
        assert (samples.mean((1, 2, 3)) > 0).all()


@pytest.mark.parametrize(("scale", "evaluations"), [(1.0, 5 * 4), (3.0, 2 * 5 * 4)])
def test_sampling_costs_one_or_two_evaluations_a_step(scale, evaluations):
    prior = CountedPrior(make_prior())
    finished = []
    arguments = {"guidance_scale": scale, "steps": 5, "on_step": finished.append}
    ddim_sample(prior, prior.embed(["left"] * 4), prior.embed([""]), rng=torch.Generator(), **arguments)
    assert prior.evaluations == evaluations
    assert finished == [1, 2, 3, 4, 5]


def test_encode_decode_round_trip():
    prior = make_prior(size=4)
    image = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    z = prior.encode(image)
    torch.testing.assert_close(prior.decode(z), image.detach())
    z.sum().backward()
    assert torch.equal(image.grad, torch.full_like(image, 2.0))
    assert prior.encode(torch.rand(1, 3, 16, 16)).shape == (1, 3, 4, 4)


def test_weights_must_be_a_distribution():
    schedule = VariancePreserving(torch.linspace(0.99, 0.01, 10))
    with pytest.raises(ValueError, match="no distribution"):
        AnalyticPrior(torch.zeros(2, 3, 1, 1), torch.ones(2), {"": torch.tensor([0.5, 0.6])}, schedule)
    with pytest.raises(ValueError, match="must be"):
        AnalyticPrior(torch.zeros(2, 3, 1, 2), torch.ones(2), {}, schedule)
