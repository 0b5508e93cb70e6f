"""Sampling from a noise schedule that ends without signal (alpha = 0)."""

import json
import shutil

import pytest
import torch

from nfsd3d.errors import InputError
from nfsd3d.prior.base import CountedPrior
from nfsd3d.prior.chunked import ChunkedPrior
from nfsd3d.prior.load_prior import load_prior
from nfsd3d.prior.sampling import ddim_sample


@pytest.fixture
def load(model_folder, tmp_path):
    def loaded(prediction_type, **scheduler):
        folder = shutil.copytree(model_folder("tiny", prediction_type), tmp_path / "model")
        path = folder / "scheduler/scheduler_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"rescale_betas_zero_snr": True} | scheduler))
        return load_prior(folder)

    return loaded


def sample(prior, scale=3.0):
    cond, uncond = prior.embed(["a red cube", "a blue cube"]), prior.embed([""])
    return ddim_sample(prior, cond, uncond, guidance_scale=scale, steps=4, rng=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_ddim_is_that_of_diffusers(load, prediction_type, scale):
    from diffusers import DDIMScheduler

    prior = load(prediction_type)
    assert prior.schedule.ends_in_noise
    scheduler = DDIMScheduler.from_config(
        {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False},
        rescale_betas_zero_snr=True,
        prediction_type=prediction_type,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
    )
    scheduler.set_timesteps(4)
    cond, uncond = prior.embed(["a red cube", "a blue cube"]), prior.embed([""]).expand(2)
    z = torch.randn(2, *prior.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for t in scheduler.timesteps:
            of_cond, of_uncond = (
                prior.denoiser(z, t, context.tensors["embeddings"]).sample for context in (cond, uncond)
            )
            z = scheduler.step(of_uncond + scale * (of_cond - of_uncond), t, z).prev_sample
    found = sample(prior, scale)
    assert found.isfinite().all()
    torch.testing.assert_close(found, z, rtol=1e-3, atol=1e-3)


def test_wrapped_priors_sample_the_same(load):
    prior = load("v_prediction")
    counted = CountedPrior(ChunkedPrior(prior, 1, False))
    torch.testing.assert_close(sample(counted), sample(prior), rtol=1e-4, atol=1e-4)
    assert counted.evaluations == 4 * 4


def test_predicted_noise_is_refused_where_it_shows_no_image(load):
    with pytest.raises(InputError, match=r"^prior\.model: predicts noise \(epsilon\), and its noise schedule ends"):
        sample(load("epsilon"))


def test_a_prior_that_predicts_noise_only_is_refused(load):
    class NoiseOnly:
        def __init__(self, prior):
            self._prior = prior

        def __getattr__(self, name):
            if name == "predict_x0":
                raise AttributeError(name)
            return getattr(self._prior, name)

    with pytest.raises(InputError, match=r"^prior: its noise schedule ends without signal"):
        sample(CountedPrior(NoiseOnly(load("v_prediction"))))


def test_predicted_latents_agree_with_predicted_noise(load):
    prior = load("v_prediction", rescale_betas_zero_snr=False)
    z_t, t = torch.randn(2, *prior.latent_shape), torch.tensor([100, 700])
    context = prior.embed(["a red cube", ""])
    expected = prior.schedule.x0_from_eps(z_t, prior.predict_eps(z_t, t, context), t)
    torch.testing.assert_close(prior.predict_x0(z_t, t, context), expected, rtol=1e-3, atol=1e-3)
