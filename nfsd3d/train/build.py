"""Builds the objects of a run from its configuration: generator, prior, optimiser, method."""

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from nfsd3d.callbacks.steering import Steering
from nfsd3d.config.schema import Config
from nfsd3d.distill.gradient import WEIGHTINGS, threshold_step
from nfsd3d.distill.methods import find_method
from nfsd3d.errors import InputError
from nfsd3d.export.formats.table import TEXTURED
from nfsd3d.generators.base import Generator, ImageGenerator, SceneGenerator
from nfsd3d.generators.settings import PluginGeneratorSettings
from nfsd3d.prior.base import Prior
from nfsd3d.prior.diffusers_prior import DiffusersPrior
from nfsd3d.prior.families.stable_diffusion import STABLE_DIFFUSION
from nfsd3d.prior.files.download import fetch
from nfsd3d.prior.files.folder import ModelFiles
from nfsd3d.prior.lora import LoraNetwork
from nfsd3d.prior.priors import TABLE as PRIORS
from nfsd3d.prior.priors import no_lora_network
from nfsd3d.prior.schedule import NoiseSchedule
from nfsd3d.prior.vocabulary import check_prompt
from nfsd3d.runs.preflight import find_model
from nfsd3d.settings.cameras import CameraRanges
from nfsd3d.settings.export import ExportSettings
from nfsd3d.settings.schedules import highest
from nfsd3d.settings.train import TrainSettings
from nfsd3d.train.build_generator import build_generator, build_images
from nfsd3d.train.initialize import load_source
from nfsd3d.train.plan import plan_at
from nfsd3d.train.progress import Progress
from nfsd3d.train.step import Distillation
from nfsd3d.views.cameras import Cameras, orbit
from nfsd3d.views.prompts import PromptBank

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

ELEVATION_DEG = 15.0
"""Default elevation of the cameras that show a result."""

CONTACT_SHEET_VIEWS = 8
"""Number of views on a contact sheet."""


@dataclass(frozen=True)
class Parts:
    """The objects of a training run; only ``generator``, ``optimizer``, ``rng`` and VSD's LoRA network are mutable.

    ``source`` is a copy of the generator from before the first step, for a method that edits.
    """

    prior: Prior
    bank: PromptBank
    generator: SceneGenerator | ImageGenerator
    optimizer: torch.optim.Optimizer
    rng: torch.Generator
    distillation: Distillation
    ranges: CameraRanges
    source: SceneGenerator | ImageGenerator | None = None


def build_parts(config: Config, prior: Prior | None = None, kept_source: Path | None = None) -> Parts:
    """The objects of a run, loaded and initialised with the run's seed; ``prior`` replaces the configured one.

    ``kept_source`` is the saved source of a resumed run (see `nfsd3d.runs.checkpoints.save_source`).

    Raises:
        InputError: an unknown method, missing model files, a word of the prompt outside the prior's vocabulary, a
        source that cannot be read, or a weighting that the prior's noise schedule does not allow.
    """
    method = find_method(config.distill.method)
    # First, because what is wrong with a mesh is to be told before a large prior is loaded.
    scene = None if config.makes_images else build_generator(config)
    if scene is not None:
        load_source(config, scene, kept=kept_source)
    prior = prior or build_prior(config)
    check_weighting(config, prior.schedule)
    bank = PromptBank.build(
        prior,
        config.prompt,
        config.negative_prompt,
        config.prompts,
        needed=method.all_prompts,
        source_prompt=config.source_prompt,
        suffixes=(config.distill.better_suffix, config.distill.worse_suffix),
    )
    prior.free_text_encoder()
    if isinstance(prior, DiffusersPrior) and prior.family is not STABLE_DIFFUSION:
        prior.check_fit()
    if scene is None:
        generator: SceneGenerator | ImageGenerator = build_images(config, prior)
        load_source(config, generator, prior, kept_source)
    else:
        generator = scene
    source = copy.deepcopy(generator).requires_grad_(False) if method.needs_source else None
    return Parts(
        prior=prior,
        bank=bank,
        generator=generator,
        optimizer=build_optimizer(generator, config.train, learning_rates(config)),
        rng=torch.Generator().manual_seed(config.seed),
        distillation=Distillation(
            method,
            config.distill,
            threshold_time(config.distill.threshold, prior.schedule),
            build_lora(config, prior) if method.needs_lora else None,
        ),
        ranges=config.cameras,
        source=source,
    )


def check_weighting(config: Config, schedule: NoiseSchedule, t_max: float | None = None) -> None:
    """Raises InputError if w(t) is infinite at a timestep that training may draw: where alpha is 0.

    ``t_max`` replaces that of ``config``.
    """
    total, name = schedule.training_steps, config.distill.weighting
    last = min(round((highest(config.train.t_max) if t_max is None else t_max) * total), total - 1)
    finite = WEIGHTINGS[name](schedule.alpha_bar(schedule.time(torch.arange(last + 1)))).isfinite()
    if not finite.all():
        allowed = max(int(finite.sum()) - 1, 0) / total  # alpha falls with t
        raise InputError(
            f"distill.weighting={name}: is infinite at this model's last timesteps, where alpha is 0 (zero terminal "
            f"SNR), and train.t_max={json.dumps(config.train.t_max)} includes them; set train.t_max={allowed:g} or "
            "less, or distill.weighting=sigma2"
        )


def check_steering(config: Config, schedule: NoiseSchedule, progress: Progress, steering: Steering) -> None:
    """Raises InputError if the rest of a run cannot be steered so."""
    done = progress.steps / config.train.steps
    for part in range(_CHECKED):
        later = done + (1 - done) * part / _CHECKED
        plan = plan_at(config.train, later).steered(steering)
        if not plan.t_min < plan.t_max:
            raise InputError(f"t_min={plan.t_min:g}: is not below t_max={plan.t_max:g} at {later:.2g} of training")
    if steering.t_max is not None:
        check_weighting(config, schedule, steering.t_max)


_CHECKED = 100  # points of the rest of a run


def threshold_time(fraction: float, schedule: NoiseSchedule) -> float:
    """The time at a fraction of the timesteps; infinite at 1, which no timestep reaches."""
    step = threshold_step(fraction, schedule.training_steps)
    return math.inf if step >= schedule.training_steps else schedule.time(torch.tensor([step])).item()


def build_lora(config: Config, prior: Prior) -> LoraNetwork:
    """VSD's LoRA network on the prior's UNet, initialised with the run's seed.

    Raises:
        InputError: a prior without a diffusers UNet.
    """
    if not isinstance(prior, DiffusersPrior) or prior.family is not STABLE_DIFFUSION:
        raise no_lora_network(config.distill.method, config.prior.name)
    return LoraNetwork(
        prior,
        rank=config.distill.lora_rank,
        learning_rate=config.distill.lora_learning_rate,
        camera_dropout=config.distill.camera_dropout,
        seed=config.seed,
    )


def model_files(config: Config) -> ModelFiles:
    """The files of the prior's model, downloaded if necessary; checks the prompt against the vocabulary.

    Raises:
        InputError: no such model, or a word outside its vocabulary.
    """
    source = find_model(config)
    if source is None:
        raise InputError(f"prior={config.prior.name}: has no model files; choose one of {', '.join(PRIORS.builtin)}")
    files = fetch(source)
    check_prompt(files.folder, config.prompt)
    return files


def teacher_in_words(config: Config) -> str:
    """The name of the prior, with the size of its weights if it has any."""
    if find_model(config) is None:
        return config.prior.name
    size = sum(path.stat().st_size for path in model_files(config).weights())
    return f"{config.prior.name} ({size / 1e9:.1f} GB)" if size >= 1e8 else config.prior.name


def build_prior(config: Config) -> Prior:
    """The frozen prior on the run's device.

    Raises:
        InputError: no such prior or model, or a word that its vocabulary lacks.
    """
    if find_model(config) is not None:
        model_files(config)
    row = PRIORS.find(config.prior.name)
    return row.build(config.prior, config.machine.device, PRECISIONS[config.machine.precision])


def learning_rates(config: Config) -> Mapping[str, float]:
    """AdamW's base learning rates by the generator's parameter groups."""
    if isinstance(config.generator, PluginGeneratorSettings):
        return config.generator.learning_rate
    return config.train.learning_rate.given()


def build_optimizer(
    generator: Generator, train: TrainSettings, rates: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """AdamW with one group per kind of parameter; each group keeps its base rate under ``base_lr``.

    ``rates`` are by the names of ``generator.parameter_groups()``; None: ``train.learning_rate``.

    Fused, because the default implementation allocates temporaries as large as the parameters; on a CPU it takes
    three times as long, with the same results to rounding.
    """
    rates = train.learning_rate.given() if rates is None else rates
    groups = [
        {"params": parameters, "lr": rates[name], "base_lr": rates[name], "name": name}
        for name, parameters in generator.parameter_groups().items()
        if parameters
    ]
    return torch.optim.AdamW(groups, betas=train.betas, eps=train.eps, weight_decay=train.weight_decay, fused=True)


def viewing_cameras(config: Config, count: int, size: int, elevation_deg: float = ELEVATION_DEG) -> Cameras:
    """``count`` cameras around the object, at the mean training distance and field of view."""
    distance, fovy_deg = config.cameras.middle
    return orbit(count, size, elevation_deg, distance=distance, fovy_deg=fovy_deg)


def mesh_settings(config: Config, textured: bool | None = None) -> ExportSettings:
    """The export settings, without a texture if not ``textured`` (default: if no configured format carries one)."""
    textured = bool(TEXTURED & set(config.export.formats)) if textured is None else textured
    return config.export if textured else replace(config.export, texture_size=0)


def mesh_extras(config: Config) -> dict[str, str | int | float]:
    """Metadata of a mesh file: prompt, method, prior and seed."""
    return {
        "prompt": config.prompt,
        "method": config.distill.method,
        "prior": config.prior.model or config.prior.name,
        "seed": config.seed,
    }
