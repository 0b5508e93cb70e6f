"""Distillation through a real network: one batched call against separate ones, and its cost."""

import pytest
import torch
from small_settings import PROMPTS

from nfsd3d.distill.gradient import inject_gradient, predict_noise
from nfsd3d.distill.methods import METHODS
from nfsd3d.prior.base import CountedPrior
from nfsd3d.prior.load_prior import load_prior
from nfsd3d.views.cameras import orbit
from nfsd3d.views.prompts import PromptBank

TIMES = [30, 199, 200, 950]


@pytest.fixture
def prior(model_folder, device):
    return load_prior(model_folder("tiny", "v_prediction"), device)


@pytest.mark.parametrize(("name", "evaluations"), [("sds", 8), ("csd", 8), ("nfsd", 10)])
def test_one_batched_call_equals_separate_ones_and_costs_what_it_must(prior, name, evaluations):
    rng = torch.Generator().manual_seed(0)
    z_t, noise = torch.randn(2, 4, *prior.latent_shape, generator=rng).to(prior.device)
    t = torch.tensor(TIMES)
    contexts = PromptBank.build(prior, "a red cube", "dull", PROMPTS).contexts(orbit(4, 8))
    counted = CountedPrior(prior)
    p = predict_noise(counted, z_t, t, contexts, METHODS[name], noise=noise, threshold=200)
    assert counted.evaluations == evaluations
    for prediction in METHODS[name].predictions:
        for row, step in enumerate(TIMES):
            one = slice(row, row + 1)
            expected = prior.predict_eps(z_t[one], t[one], contexts[prediction][one])
            if prediction == "neg" and step < 200:
                expected = torch.zeros_like(expected)
            torch.testing.assert_close(getattr(p, prediction)[one], expected, rtol=1e-4, atol=1e-4)


def test_the_gradient_reaches_the_image(prior):
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).to(prior.device).requires_grad_()
    z = prior.encode(image)
    t = torch.tensor([100, 600])
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1)).to(z)
    contexts = PromptBank.build(prior, "a red cube", "dull", PROMPTS).contexts(orbit(2, 8))
    z_t = prior.schedule.add_noise(z.detach(), noise, t)
    p = predict_noise(prior, z_t, t, contexts, METHODS["nfsd"], noise=noise, threshold=200)
    direction = METHODS["nfsd"].function(p, 7.5)
    inject_gradient(z, direction).backward()
    (expected,) = torch.autograd.grad(prior.encode(image), image, grad_outputs=direction / 2)
    torch.testing.assert_close(image.grad, expected)
    assert image.grad.abs().sum() > 0
