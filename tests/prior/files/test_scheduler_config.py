"""A scheduler's configuration is read with the defaults of its own class, or refused."""

import inspect
import json

import pytest
import torch

from nfsd3d.errors import InputError
from nfsd3d.prior.files.scheduler_config import DEFAULTS, PREDICTION_TYPES, training_schedule
from nfsd3d.prior.schedule import RectifiedFlow, stable_diffusion_alphas


def read(**config):
    return training_schedule({"_class_name": "DDIMScheduler", **config}, "prior.model: x.json")


@pytest.mark.parametrize("name", sorted(DEFAULTS))
def test_defaults_are_those_of_the_class(name):
    import diffusers

    try:
        parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    except (ImportError, RuntimeError) as error:
        pytest.skip(str(error))  # DPMSolverSDEScheduler needs torchsde
    expected = {"num_train_timesteps": 1000, "prediction_type": "epsilon", **DEFAULTS[name]}
    if "beta_start" not in parameters:
        pytest.skip(f"{name} is a placeholder here")
    assert {key: parameters[key].default for key in expected} == expected


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of HeunDiscreteScheduler
@pytest.mark.parametrize("name", ["DDIMScheduler", "HeunDiscreteScheduler", "EulerDiscreteScheduler"])
def test_the_schedule_is_that_of_the_class_when_the_configuration_leaves_it_out(name, tmp_path):
    import diffusers
    import torch

    from nfsd3d.prior.files.load import load_schedule

    scheduler = getattr(diffusers, name)()
    (tmp_path / "scheduler_config.json").write_text(f'{{"_class_name": "{name}"}}')
    schedule, prediction_type = load_schedule(tmp_path)
    assert prediction_type == "epsilon"
    assert torch.equal(schedule.alphas_cumprod, scheduler.alphas_cumprod.double())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "FlowMatchLCMScheduler"}, "a consistency model"),
        ({"prediction_type": "trigflow"}, "a consistency model"),
        ({"_class_name": "EDMEulerScheduler"}, "an EDM model"),
        ({"_class_name": "EDMDPMSolverMultistepScheduler"}, "an EDM model"),
        ({"_class_name": "LCMScheduler"}, "a consistency model"),
        ({"_class_name": "TCDScheduler"}, "a consistency model"),
        ({"_class_name": "CMStochasticIterativeScheduler"}, "a consistency model"),
        ({"_class_name": "UnCLIPScheduler"}, "an unCLIP model"),
        ({"_class_name": "MyScheduler"}, "names the scheduler MyScheduler"),
        ({"_class_name": None}, "names the scheduler None"),
        ({"prediction_type": "x1"}, "prediction type 'x1' is not one of epsilon, v_prediction, sample"),
        ({"beta_schedule": "cubic"}, "beta_schedule 'cubic' is not one of linear, scaled_linear, squaredcos_cap_v2"),
        ({"beta_start": None}, "betas must be numbers"),
        ({"beta_end": 1.5}, "betas must be numbers"),
        ({"beta_start": -0.1}, "betas must be numbers"),
        ({"trained_betas": []}, "betas must be numbers"),
        ({"trained_betas": [0.1]}, "1 trained_betas for 1000"),
        ({"num_train_timesteps": 0}, "is not a number of steps"),
        ({"num_train_timesteps": "many"}, "is not a number of steps"),
        ({"num_train_timesteps": 1000.0}, "is not a number of steps"),
        ({"num_train_timesteps": 10**30}, "is not a number of steps"),
        ({"num_train_timesteps": float("nan")}, "is not a number of steps"),
        ({"num_train_timesteps": float("inf")}, "is not a number of steps"),
        ({"beta_start": "0.0001"}, "betas must be numbers"),
        ({"trained_betas": {"a": 1}}, "betas must be numbers"),
        ({"rescale_betas_zero_snr": "false"}, "rescale_betas_zero_snr is neither true nor false"),
    ],
)
def test_other_schedules_are_refused(config, message):
    with pytest.raises(InputError, match=rf"^prior\.model: x\.json.*{message}"):
        read(**config)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_what_the_configuration_says_counts(prediction_type):
    config = {"prediction_type": prediction_type, "beta_schedule": "scaled_linear", "num_train_timesteps": 50}
    training = read(**config)
    assert (training.prediction_type, training.steps) == (prediction_type, 50)
    assert training.config.items() >= config.items()


@pytest.mark.parametrize(
    ("config", "ends"),
    [
        ({}, False),
        ({"rescale_betas_zero_snr": True}, True),
        ({"beta_schedule": "squaredcos_cap_v2"}, False),
        ({"trained_betas": [0.1, 1.0], "num_train_timesteps": 2}, True),
        ({"trained_betas": [0.9] * 50, "num_train_timesteps": 50}, True),
        ({"trained_betas": [0.9] * 40, "num_train_timesteps": 40}, False),
    ],
)
def test_a_schedule_that_ends_without_signal_is_known_from_its_configuration(config, ends):
    from diffusers import DDPMScheduler

    training = read(**config)
    assert training.ends_in_noise is ends
    assert (DDPMScheduler(**training.config).alphas_cumprod[-1].item() == 0) is ends


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
        {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True},
        {"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction"},
    ],
)
def test_flow_schedulers_are_a_rectified_flow_whatever_noise_schedule_they_also_have(tmp_path, config):
    from nfsd3d.prior.files.load import load_schedule

    training = training_schedule(config, "x")
    assert training.is_flow and training.steps == 1000 and not training.ends_in_noise
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    schedule, predicted = load_schedule(tmp_path)
    assert isinstance(schedule, RectifiedFlow) and predicted == "flow"
    torch.testing.assert_close(schedule.alphas_cumprod, stable_diffusion_alphas())
