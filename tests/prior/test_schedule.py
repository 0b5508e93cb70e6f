import itertools

import pytest
import torch

from nfsd3d.prior.parametrizations import PARAMETRIZATIONS
from nfsd3d.prior.schedule import VariancePreserving


def scaled_linear(steps=1000):
    """Stable Diffusion's schedule, written out."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, steps, dtype=torch.float64) ** 2
    return VariancePreserving(torch.cumprod(1 - betas, dim=0))


@pytest.fixture
def batch():
    rng = torch.Generator().manual_seed(0)
    z, eps = torch.randn(2, 5, 4, 3, 3, generator=rng, dtype=torch.float64)
    return z, eps, torch.tensor([0, 1, 200, 700, 999])


def test_add_noise_by_hand(batch):
    z, eps, t = batch
    schedule = scaled_linear()
    z_t = schedule.add_noise(z, eps, t)
    for row, step in enumerate(t.tolist()):
        alpha_bar = schedule.alphas_cumprod[step]
        expected = alpha_bar**0.5 * z[row] + (1 - alpha_bar) ** 0.5 * eps[row]
        torch.testing.assert_close(z_t[row], expected, rtol=1e-14, atol=1e-14)


def test_every_parametrisation_gives_the_same_noise_and_latent(batch):
    z, eps, t = batch
    schedule = scaled_linear()
    z_t = schedule.add_noise(z, eps, t)
    alpha, sigma = schedule.alpha_sigma(t, z)
    v = alpha * eps - sigma * z
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(schedule.x0_from_eps(z_t, eps, t), z, **close)
    torch.testing.assert_close(schedule.eps_from_x0(z_t, z, t), eps, **close)
    for name, output in {"epsilon": eps, "sample": z, "v_prediction": v}.items():
        predicts = PARAMETRIZATIONS[name]
        torch.testing.assert_close(predicts.to_x0(schedule, z_t, output, t), z, **close)
        torch.testing.assert_close(predicts.to_eps(schedule, z_t, output, t), eps, **close)


def test_coefficients_take_the_dtype_of_the_latents(batch):
    z, eps, t = batch
    noised = scaled_linear().add_noise(z.float(), eps.float(), t)
    assert noised.dtype == torch.float32


def test_ddim_with_the_true_noise_goes_anywhere_and_back(batch):
    z, eps, t = batch
    schedule = scaled_linear()
    other = torch.tensor([500, 20, 999, 3, 0])
    z_t = schedule.add_noise(z, eps, t)
    torch.testing.assert_close(schedule.ddim_step(z_t, eps, t, other), schedule.add_noise(z, eps, other))
    torch.testing.assert_close(schedule.ddim_step(z_t, eps, t, None), z)


@pytest.mark.parametrize(("training_steps", "steps"), [(1000, 30), (1000, 1), (1000, 1000), (50, 7), (10, 9)])
def test_ddim_timesteps_descend_from_the_noisiest(training_steps, steps):
    times = scaled_linear(training_steps).sampling_times(steps).tolist()
    assert len(times) == steps and times[0] == training_steps - 1 and times[-1] >= 0
    assert all(later < earlier for earlier, later in itertools.pairwise(times))


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_ddim_refuses_impossible_numbers_of_steps(steps):
    with pytest.raises(ValueError, match="between 1 and 1000"):
        scaled_linear().sampling_times(steps)


@pytest.mark.parametrize("training_steps", [1000, 50])
def test_timesteps_fill_the_range_and_stay_in_it(training_steps):
    schedule = scaled_linear(training_steps)
    times = schedule.sample_times(torch.Generator().manual_seed(0), 20000, 0.02, 0.98)
    assert times.dtype == torch.int64
    low, high = round(0.02 * training_steps), round(0.98 * training_steps)
    assert (int(times.min()), int(times.max())) == (low, high)
    assert abs(times.double().mean().item() - (low + high) / 2) < 0.02 * training_steps


def test_timesteps_at_the_end_of_the_range_exist_and_repeat_with_the_seed():
    schedule = scaled_linear()
    assert schedule.sample_times(torch.Generator(), 4, 1.0, 1.0).tolist() == [999] * 4
    first, second = (schedule.sample_times(torch.Generator().manual_seed(3), 8, 0, 1) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(("t_min", "t_max"), [(0.5, 0.4), (-0.1, 0.5), (0.5, 1.1)])
def test_impossible_timestep_ranges(t_min, t_max):
    with pytest.raises(ValueError, match="t_min"):
        scaled_linear().sample_times(torch.Generator(), 1, t_min, t_max)


def test_coefficients_on_the_cpu_need_no_other_device():
    moved = scaled_linear().to("meta")  # as a GPU: its numbers cannot be read from here
    assert moved.alphas_cumprod.device.type == "meta"
    t = torch.tensor([3, 900])
    assert torch.equal(moved.alpha_bar(t), scaled_linear().alpha_bar(t))
    assert moved.alpha_bar(t.to("meta")).device.type == "meta"


def test_a_range_that_rounding_turned_around_is_its_beginning():
    assert scaled_linear().sample_times(torch.Generator(), 2, 0.5, 0.5 - 1e-10).tolist() == [500, 500]
