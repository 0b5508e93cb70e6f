import pytest
import torch

from nfsd3d.distill.gradient import WEIGHTINGS, inject_gradient, threshold_step, weight
from nfsd3d.guidance import guided
from nfsd3d.prior.schedule import RectifiedFlow, VariancePreserving, stable_diffusion_alphas
from nfsd3d.train.build import threshold_time


def test_guidance_has_one_meaning():
    uncond, cond = torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.equal(guided(uncond, cond, 0.0), uncond)
    torch.testing.assert_close(guided(uncond, cond, 1.0), cond)
    torch.testing.assert_close(guided(uncond, cond, 7.5), 7.5 * cond - 6.5 * uncond)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("sigma2", 0.36), ("uniform", 1.0), ("sigma_over_alpha", 0.75), ("sigma_alpha", 0.48), ("velocity", 1.75)],
)
def test_weightings_at_alpha_0_8_sigma_0_6(name, expected):
    z = torch.zeros(2, 4, 3, 3)
    w = weight(name, torch.tensor([0.64, 0.64], dtype=torch.float64), z)
    assert w.shape == (2, 1, 1, 1) and w.dtype == z.dtype
    torch.testing.assert_close(w.flatten(), torch.full((2,), expected))


def test_every_weighting_is_tested_above():
    assert set(WEIGHTINGS) == {"sigma2", "uniform", "sigma_over_alpha", "sigma_alpha", "velocity"}


@pytest.mark.parametrize(("training_steps", "expected"), [(1000, 200), (50, 10), (4000, 800), (7, 1), (999, 200)])
def test_the_threshold_scales_with_the_training_steps(training_steps, expected):
    assert threshold_step(0.2, training_steps) == expected


def test_the_injected_gradient_is_grad_over_the_batch():
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(5, 4, 3, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(5, 4, 3, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    inject_gradient(z, grad).backward()
    torch.testing.assert_close(z.grad, grad.detach() / 5, rtol=0, atol=1e-16)
    assert grad.grad is None


def test_small_gradients_survive_half_precision():
    z = torch.ones(1, 4, 2, 2, dtype=torch.float16, requires_grad=True)
    grad = torch.full_like(z, 1e-4)
    inject_gradient(z, grad).backward()
    assert torch.equal(z.grad, grad.detach())


def test_sum_over_the_latent_mean_over_the_batch():
    def gradient_of_a_shared_parameter(*shape):
        parameter = torch.tensor(1.0, requires_grad=True)
        inject_gradient(parameter.expand(shape), torch.full(shape, 0.25)).backward()
        return parameter.grad.item()

    one = gradient_of_a_shared_parameter(1, 4, 8, 8)
    assert one == pytest.approx(0.25 * 4 * 64)
    assert gradient_of_a_shared_parameter(6, 4, 8, 8) == pytest.approx(one)
    assert gradient_of_a_shared_parameter(1, 4, 16, 16) == pytest.approx(4 * one)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="shape"):
        inject_gradient(torch.zeros(2, 4, 3, 3), torch.zeros(2, 1, 1, 1))


@pytest.mark.parametrize("schedule", [VariancePreserving(stable_diffusion_alphas()), RectifiedFlow()])
def test_no_timestep_reaches_the_threshold_1(schedule):
    last = schedule.time(torch.tensor([schedule.training_steps - 1])).item()
    assert threshold_time(0.2, schedule) < last < threshold_time(1.0, schedule)
    assert threshold_time(1.0, schedule) > 1.0  # the end of a flow
