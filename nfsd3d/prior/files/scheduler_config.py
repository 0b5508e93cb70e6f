"""Reads how a model was trained, its noise schedule and prediction type, from its scheduler's configuration.

A configuration lists what differs from the defaults of its scheduler class, and may leave out the rest. The classes
have different defaults, so that another class must not be used to read it. Torch is not imported.
"""

from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any

from nfsd3d.errors import InputError
from nfsd3d.prior.families.table import SUPPORTED
from nfsd3d.prior.files.configs_and_headers import read_object

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
"""What the denoiser of a diffusion model may predict."""
FLOW = "flow"
"""The prediction type of a rectified flow: its velocity."""

_DDPM = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
_OF_DDPM = (
    "DDIMInverse DDIMParallel DDIM DDPMParallel DDPM DEISMultistep DPMSolverMultistepInverse DPMSolverMultistep "
    "DPMSolverSinglestep EulerAncestralDiscrete EulerDiscrete LMSDiscrete PNDM SASolver UniPCMultistep"
)
_KARRAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"}
_OF_KARRAS = "DPMSolverSDE HeunDiscrete KDPM2AncestralDiscrete KDPM2Discrete"
DEFAULTS: dict[str, dict[str, Any]] = {
    f"{name}Scheduler": values for names, values in ((_OF_DDPM, _DDPM), (_OF_KARRAS, _KARRAS)) for name in names.split()
}
"""Noise schedules of diffusers' scheduler classes where a configuration names none, for models trained as DDPM is."""

_STEPS = 1000  # of every class in DEFAULTS
_MOST_STEPS = 1_000_000
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
"""Forms of the noise schedule, as diffusers names them."""

_OF_FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
_FAMILIES = {
    "FlowMatchLCM": "a consistency model",
    "LTXEuler": "a video model",
    "EDM": "an EDM model",
    "LCM": "a consistency model",
    "TCD": "a consistency model",
    "CM": "a consistency model",
    "SCM": "a consistency model",
    "CogVideo": "a video model",
    "UnCLIP": "an unCLIP model",
    "VQ": "a model of discrete latents",
}
_TERMINAL = 2.0**-149  # the smallest positive float32: ᾱ below it counts as 0, as in diffusers


@dataclass(frozen=True)
class TrainingSchedule:
    """The noise schedule and the prediction type of a model.

    ``config`` are the arguments of diffusers' DDPMScheduler, for a rectified flow without a noise schedule;
    ``ends_in_noise`` says that ᾱ is 0 at the last timestep (zero terminal SNR, 2305.08891), so that z_t holds nothing
    of the image there.
    """

    config: dict[str, Any]
    ends_in_noise: bool

    @property
    def prediction_type(self) -> str:
        """One of :data:`PREDICTION_TYPES`, or :data:`FLOW`."""
        return str(self.config["prediction_type"])

    @property
    def is_flow(self) -> bool:
        """Whether the model is a rectified flow."""
        return self.prediction_type == FLOW

    @property
    def steps(self) -> int:
        """The number of timesteps."""
        return int(self.config["num_train_timesteps"])


def read_training(folder: Path) -> TrainingSchedule:
    """The training schedule of the model in ``folder``; see :func:`training_schedule`.

    Raises:
        InputError: also if the configuration cannot be read.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    return training_schedule(read_object(path), f"prior.model: {path}")


def prediction_type(folder: Path) -> str:
    """The prediction type of the model in ``folder``: "epsilon", "v_prediction", "sample" or "flow".

    Raises:
        InputError: the scheduler's configuration cannot be read.
    """
    config = read_object(folder / "scheduler" / "scheduler_config.json")
    return FLOW if _is_flow(config) else str(config.get("prediction_type", "epsilon"))


def training_schedule(config: dict[str, Any], setting: str) -> TrainingSchedule:
    """The training schedule that a scheduler's configuration describes; what it leaves out are its class's defaults.

    Raises:
        InputError: it is that of another family, or is inconsistent; the message begins with ``setting``.
    """
    name = config.get("_class_name")
    family = next((family for beginning, family in _FAMILIES.items() if str(name).startswith(beginning)), None)
    if config.get("prediction_type") == "trigflow":
        family = "a consistency model"
    if family is not None:
        raise InputError(f"{setting} is that of {family} ({name}), {SUPPORTED}")
    if _is_flow(config):
        return TrainingSchedule({"prediction_type": FLOW, "num_train_timesteps": _STEPS}, False)
    if name not in DEFAULTS:
        raise InputError(
            f"{setting} names the scheduler {name}, whose noise schedule is not known; name one with betas, such as "
            "DDIMScheduler, and beta_schedule, beta_start and beta_end of the training"
        )
    values: dict[str, Any] = {"num_train_timesteps": _STEPS, "trained_betas": None, "rescale_betas_zero_snr": False}
    values |= {"prediction_type": "epsilon", **DEFAULTS[name]}
    values |= {key: config[key] for key in values if key in config}
    _check(values, setting)
    return TrainingSchedule(values, _last_alpha_bar(values) < _TERMINAL)


def _is_flow(config: dict[str, Any]) -> bool:
    named = config.get("_class_name") in _OF_FLOWS
    return named or bool(config.get("use_flow_sigmas")) or config.get("prediction_type") == "flow_prediction"


def _check(values: dict[str, Any], setting: str) -> None:
    prediction, form = values["prediction_type"], values["beta_schedule"]
    if prediction not in PREDICTION_TYPES:
        raise InputError(f"{setting}: prediction type {prediction!r} is not one of {', '.join(PREDICTION_TYPES)}")
    betas, steps = values["trained_betas"], values["num_train_timesteps"]
    if betas is None and form not in BETA_SCHEDULES:
        raise InputError(f"{setting}: beta_schedule {form!r} is not one of {', '.join(BETA_SCHEDULES)}")
    if not (type(steps) is int and 2 <= steps <= _MOST_STEPS):
        raise InputError(
            f"{setting}: num_train_timesteps={steps!s:.40} is not a number of steps, 2 to {_MOST_STEPS}; write for "
            "example 1000"
        )
    if not isinstance(values["rescale_betas_zero_snr"], bool):
        raise InputError(f"{setting}: rescale_betas_zero_snr is neither true nor false; write one of them")
    if betas is None:
        given = [values["beta_start"], values["beta_end"]]
    else:
        given = betas if isinstance(betas, list) and betas else [None]
    if not all(type(beta) in (int, float) and 0 < beta <= 1 for beta in given):
        raise InputError(f"{setting}: betas must be numbers above 0 and at most 1; replace it with an intact copy")
    if betas is not None and len(betas) != steps:
        raise InputError(f"{setting}: {len(betas)} trained_betas for {steps} num_train_timesteps; make them equal")


def _last_alpha_bar(values: dict[str, Any]) -> float:
    """ᾱ at the last timestep, up to rounding."""
    if values["rescale_betas_zero_snr"]:
        return 0.0
    if values["trained_betas"] is None and values["beta_schedule"] == "squaredcos_cap_v2":
        return 1.0  # its betas are at most .999 by definition, and ᾱ stays above 0
    betas = values["trained_betas"]
    if betas is None:
        steps, root = values["num_train_timesteps"], values["beta_schedule"] == "scaled_linear"
        first, last = (beta**0.5 if root else beta for beta in (values["beta_start"], values["beta_end"]))
        line = (first + (last - first) * step / (steps - 1) for step in range(steps))
        betas = [value**2 if root else value for value in line]
    *_, alpha_bar = accumulate((1 - beta for beta in betas), mul)
    return float(alpha_bar)
