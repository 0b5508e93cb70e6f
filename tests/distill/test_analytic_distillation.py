"""Score distillation with an analytic prior."""

import pytest
import torch
from analytic_prior import AnalyticPrior

from nfsd3d.distill.gradient import inject_gradient, predict_noise, threshold_step, weight
from nfsd3d.distill.methods import METHODS, RandomNoise
from nfsd3d.prior.schedule import VariancePreserving

SIZE = 2
TARGET, OTHER = 0.8, -0.8


def make_prior(training_steps=1000):
    """Two kinds of image, bright and dark; the negative prompt means anything at all."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, training_steps, dtype=torch.float64) ** 2 * 1000 / training_steps
    values = torch.tensor([TARGET, OTHER, 0.0], dtype=torch.float64)
    prompts = {"bright": [1, 0, 0], "dark": [0, 1, 0], "": [0.5, 0.5, 0], "bad": [0, 0, 1], "mostly": [0.7, 0.3, 0]}
    return AnalyticPrior(
        values[:, None, None, None].expand(3, 3, SIZE, SIZE),
        torch.tensor([0.1, 0.1, 1.5], dtype=torch.float64),
        {prompt: torch.tensor(weights, dtype=torch.float64) for prompt, weights in prompts.items()},
        VariancePreserving(torch.cumprod(1 - betas, dim=0)),
    )


def contexts(prior, count, prompt="bright"):
    opposite = {"bright": "dark", "dark": "bright"}[prompt]
    prompts = {
        "cond": prompt,
        "uncond": "",
        "neg": "bad",
        "plain": prompt,
        "better": prompt,
        "worse": opposite,
        "source_cond": opposite,
    }
    return {name: prior.embed([text]).expand(count) for name, text in prompts.items()}


class KnowsTheRenders:
    """A LoRA network that has learnt one image perfectly: its prediction is the noise in z_t."""

    def __init__(self, schedule, image):
        self.schedule, self.image = schedule, image

    def predict_eps(self, z_t, t, context):
        return self.schedule.eps_from_x0(z_t, self.image.expand(z_t.shape), t)


def residual(z, t, seed):
    """[B,3,n,n] the SDS residual: the unconditional prediction minus the noise that was added."""
    prior = make_prior()
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    steps = torch.full((len(z),), t)
    z_t = prior.schedule.add_noise(z, noise, steps)
    p = predict_noise(prior, z_t, steps, contexts(prior, len(z)), METHODS["sds"], noise=noise, threshold=200)
    return METHODS["sds"].function(p, 0.0)


def in_domain(count, seed):
    rng = torch.Generator().manual_seed(seed)
    bright = torch.rand(count, 1, 1, 1, generator=rng, dtype=torch.float64) < 0.5
    spread = 0.1 * torch.randn(count, 3, SIZE, SIZE, generator=rng, dtype=torch.float64)
    return torch.where(bright, TARGET, OTHER) + spread


@pytest.mark.parametrize("t", [50, 300, 800])
def test_the_sds_residual_of_in_domain_images_has_mean_zero_but_is_not_zero(t):
    values = residual(in_domain(20000, seed=t), t, seed=t + 1)
    error = values.std(0) / len(values) ** 0.5
    assert (values.mean(0).abs() < 4.5 * error).all()
    assert values.std() > 0.05


def test_the_residual_of_out_of_domain_images_points_back_to_the_domain():
    # Brighter than any image of the domain; minus the direction is the way to go.
    too_bright = torch.full((4000, 3, SIZE, SIZE), 1.5, dtype=torch.float64)
    values = residual(too_bright, 300, seed=0)
    assert (values.mean(0) > 20 * values.std(0) / len(values) ** 0.5).all()


def optimise(method, prompt, s, t_max, training_steps=1000, start=OTHER, steps=400):
    prior, rng, views = make_prior(training_steps), torch.Generator().manual_seed(0), 8
    z = torch.full((1, 3, SIZE, SIZE), start, dtype=torch.float64, requires_grad=True)
    origin = z.detach().clone()
    optimiser = torch.optim.Adam([z], lr=0.02)
    threshold = threshold_step(0.2, training_steps)
    given = contexts(prior, views, prompt)
    for step in range(steps):
        now = METHODS[method].at(step / steps)
        batch = z.expand(views, -1, -1, -1)
        t = prior.schedule.sample_times(rng, views, 0.02, t_max)
        z_t, noise = now.noising(prior, batch.detach(), t, given, rng)
        later = None
        if now.later is not None:
            t_later = now.later(prior.schedule, t, rng)
            later = prior.schedule.add_noise(batch.detach(), noise, t_later), t_later
        p = predict_noise(
            prior,
            z_t,
            t,
            given,
            now,
            later=later,
            noise=noise,
            threshold=threshold,
            source=prior.schedule.add_noise(origin.expand(views, -1, -1, -1), noise, t),
            lora=KnowsTheRenders(prior.schedule, z.detach()),
        )
        w = weight("sigma2", prior.schedule.alpha_bar(t), batch)
        optimiser.zero_grad()
        inject_gradient(batch, w * now.function(p, s)).backward()
        optimiser.step()
    return z.detach()


# Guidance above 1 and high noise levels overshoot the mode even with exact predictions, hence the t_max.
@pytest.mark.parametrize("training_steps", [1000, 100])
@pytest.mark.parametrize(("prompt", "mode", "start"), [("bright", TARGET, OTHER), ("dark", OTHER, TARGET)])
def test_nfsd_descends_to_the_mode_of_the_prompt(prompt, mode, start, training_steps):
    z = optimise("nfsd", prompt, 7.5, 0.4, training_steps, start)
    assert (z - mode).abs().max() < 0.15


def test_sds_without_guidance_finds_the_mode_at_all_noise_levels():
    assert (optimise("sds", "bright", 1.0, 0.98) - TARGET).abs().max() < 0.01


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.needs_source])
def test_every_method_ends_on_the_side_of_its_prompt(method):
    steps = 400 if METHODS[method].noising == RandomNoise() else 150
    assert (optimise(method, "bright", 7.5, 0.98, steps=steps) > 0.5).all()
    assert (optimise(method, "dark", 7.5, 0.98, start=TARGET, steps=steps) < -0.5).all()


def test_vsd_has_zero_gradient_where_renders_match_the_prompt():
    """A LoRA network with the prior's predictions for the prompt gives a zero gradient at s = 1."""
    prior, t = make_prior(), torch.tensor([50, 300, 800])
    z_t = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    given = contexts(prior, 3)
    options = {"noise": z_t, "threshold": 200, "lora": prior}
    at_rest = predict_noise(prior, z_t, t, given, METHODS["vsd"], **options)
    assert METHODS["vsd"].function(at_rest, 1.0).abs().max() < 1e-12
    given["plain"] = prior.embed(["mostly"]).expand(3)
    moving = predict_noise(prior, z_t, t, given, METHODS["vsd"], **options)
    assert METHODS["vsd"].function(moving, 1.0).abs().max() > 1e-3


def test_dds_moves_from_the_source_along_the_difference_of_the_prompts():
    prior, t = make_prior(), torch.full((500,), 600)
    source = torch.full((500, 3, SIZE, SIZE), OTHER, dtype=torch.float64)
    noise = torch.randn(source.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z_t = prior.schedule.add_noise(source, noise, t)
    p = predict_noise(prior, z_t, t, contexts(prior, 500), METHODS["dds"], noise=noise, threshold=200, source=z_t)
    direction = METHODS["dds"].function(p, 7.5)
    torch.testing.assert_close(direction, 7.5 * (p.cond - p.source_cond))
    assert (direction.mean(0) < 0).all()  # minus the direction is brighter
