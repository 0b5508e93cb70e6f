"""Measurements with a prior of full size: where a step's time goes, how near it is to the arithmetic, and how the same
method fares with the choices of a common implementation.
"""

import gc
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nfsd3d.bench.step import StepTiming, bench_step
from nfsd3d.distill.methods import Method
from nfsd3d.errors import InputError
from nfsd3d.generator.nerf import NeRF
from nfsd3d.prior.architectures import random_networks
from nfsd3d.prior.noise import NoiseSchedule
from nfsd3d.prior.stable_diffusion import StableDiffusionPrior
from nfsd3d.settings import Config, TrainConfig
from nfsd3d.train.build import Parts, build_optimizer
from nfsd3d.train.compilation import release_compiled
from nfsd3d.train.pieces import Pieces
from nfsd3d.train.plan import plan_at

TERA = 1e12
ALPHA = 0.01
"""Opacity of a sample below which the peer does not evaluate its colour."""
H200_FLOOR_MS = 5.9
"""The arithmetic of a step of NFSD with Stable Diffusion 2.1-base at 512x512 on an H200 at its measured speed."""


@dataclass(frozen=True)
class Arithmetic:
    """TFLOP of a model's parts for one image: ``unet`` one evaluation, ``encode`` and its ``backward`` to the image."""

    unet: float
    encode: float
    backward: float
    decode: float

    def step(self, evaluations: float, images: int) -> float:
        """TFLOP that a step cannot do without, with so many evaluations of the UNet in all."""
        return evaluations * self.unet + images * (self.encode + self.backward)


@cache
def arithmetic(name: str, image_size: int) -> Arithmetic:
    """Counted on networks without weights; ``name`` is a key of ``architectures.ARCHITECTURES``."""
    unet, vae, text_encoder = random_networks(name, "meta", image_size=image_size)
    latent = torch.empty(1, 4, unet.config.sample_size, unet.config.sample_size, device="meta")
    context = torch.empty(1, 77, text_encoder.config.hidden_size, device="meta")
    for network in (unet, vae):
        network.requires_grad_(False)
    image = torch.empty(1, 3, image_size, image_size, device="meta", requires_grad=True)
    counts = []
    with torch.no_grad():
        counts.append(_counted(lambda: unet(latent, torch.zeros(1, device="meta"), context)))
        counts.append(_counted(lambda: vae.decode(latent)))
    forward, encoded = _counted(lambda: vae.encode(image).latent_dist.mean)
    backward, _ = _counted(lambda: encoded.sum().backward())
    (evaluation, _), (decode, _) = counts
    return Arithmetic(evaluation, forward, backward, decode)


def _counted(function: Callable[[], Any]) -> tuple[float, Any]:
    with FlopCounterMode(display=False) as counter:
        result = function()
    return counter.get_total_flops() / TERA, result


@dataclass(frozen=True)
class Stage:
    """A resolution of the recipe: from the fraction ``start`` of training to ``end``."""

    resolution: int
    start: float
    end: float

    @property
    def middle(self) -> float:
        """The fraction of training that stands for all of the stage."""
        return (self.start + self.end) / 2


@dataclass(frozen=True)
class StageTiming:
    """A stage of the recipe, measured: see ``bench.StepTiming`` for ``timing``.

    ``tflop`` is the arithmetic that a step of it cannot do without, ``tflops`` what the device achieved of it in a
    second; ``peak_memory_gb`` the largest memory allocated on a GPU, None on a CPU.
    """

    stage: Stage
    timing: StepTiming
    tflop: float
    tflops: float
    peak_memory_gb: float | None


def stages(train: TrainConfig) -> list[Stage]:
    """The resolutions that a recipe goes through."""
    if isinstance(train.resolution, int):
        return [Stage(train.resolution, 0.0, 1.0)]
    starts = [start for start, _ in train.resolution]
    ends = [*starts[1:], 1.0]
    found = zip(train.resolution, ends, strict=True)
    return [Stage(resolution, start, end) for (start, resolution), end in found if end > start]


def at_most(config: Config, resolution: int) -> Config:
    """The configuration with its views no finer than ``resolution`` pixels."""
    train = config.to_dict()["train"]
    planned = train["resolution"]
    capped = (
        min(planned, resolution)
        if isinstance(planned, int)
        else [[start, min(size, resolution)] for start, size in planned]
    )
    return config.replace(train={**train, "resolution": capped})


def bench_stages(
    parts: Parts,
    config: Config,
    counted: Arithmetic,
    *,
    steps: int,
    warmup: int,
    on_step: Callable[[], None] = lambda: None,
    pieces: Pieces | None = None,
) -> list[StageTiming]:
    """Every stage of the recipe, ``steps`` timed steps each, from the generator's present state."""
    device = parts.generator.device
    found = []
    for stage in stages(config.train):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        train = _frozen(config.train, stage)
        timing = bench_step(parts, train, steps=steps, warmup=warmup, on_step=on_step, pieces=pieces)
        tflop = counted.step(timing.evaluations, config.train.batch_size)
        peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
        found.append(StageTiming(stage, timing, tflop, tflop * timing.steps_per_second, peak))
    return found


def _frozen(train: TrainConfig, stage: Stage) -> TrainConfig:
    """The recipe as it is in the middle of a stage, throughout."""
    plan = plan_at(train, stage.middle)
    regularizers = train.regularizers.model_copy(update=plan.regularizers)
    held: dict[str, Any] = {name: getattr(plan, name) for name in ("t_min", "t_max", "learning_rate_factor")}
    return train.model_copy(update={**held, "resolution": stage.resolution, "regularizers": regularizers})


def run_hours(timings: list[StageTiming], steps: int) -> float:
    """Hours of a run of ``steps`` steps, extrapolated from warm steps of each stage of its recipe."""
    seconds = (steps * (t.stage.end - t.stage.start) / t.timing.steps_per_second for t in timings)
    return sum(seconds) / 3600


def as_peer(parts: Parts, precision: torch.dtype) -> Parts:
    """The same method with a common implementation's choices; the networks themselves change to ``precision``.

    No compilation; all branches in every row, in one call; each encoding followed by a decoding that nobody uses; and
    samples pruned by their opacity, for which the density of all of them is evaluated once more. Nothing is split.
    """
    assert isinstance(parts.prior, StableDiffusionPrior)
    assert isinstance(parts.generator, NeRF)
    prior = _PeerPrior(parts.prior.in_precision(precision))
    nerf = parts.generator
    nerf.settings = replace(nerf.settings, prune_alpha=ALPHA)
    method = _in_every_row(parts.distillation.method)
    return replace(parts, prior=prior, distillation=replace(parts.distillation, method=method))


def _in_every_row(method: Method) -> Method:
    return replace(method, active={}, then=None if method.then is None else _in_every_row(method.then))


class _PeerPrior:
    """A prior whose every encoding is followed by a decoding; final."""

    def __init__(self, prior: StableDiffusionPrior) -> None:
        self._prior = prior

    @property
    def evaluations(self) -> int:
        return self._prior.evaluations

    @property
    def schedule(self) -> NoiseSchedule:
        return self._prior.schedule

    @property
    def image_size(self) -> int:
        return self._prior.image_size

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self._prior.latent_shape

    @property
    def device(self) -> torch.device:
        return self._prior.device

    def embed(self, prompts: list[str]) -> Tensor:
        return self._prior.embed(prompts)

    def free_text_encoder(self) -> None:
        self._prior.free_text_encoder()

    def encode(self, image: Tensor, *, checkpoint: bool = False) -> Tensor:
        z = self._prior.encode(image)
        self._prior.decode(z.detach())
        return z

    def decode(self, z: Tensor) -> Tensor:
        return self._prior.decode(z)

    def predict_eps(self, z_t: Tensor, t: Tensor, context: Tensor, *, at_most: int | None = None) -> Tensor:
        return self._prior.predict_eps(z_t, t, context, at_most=at_most)


@dataclass(frozen=True)
class Comparison:
    """A method with this program's choices and with a ``peer``'s, stage by stage of one recipe.

    ``speedups`` are the peer's milliseconds by ours, at each stage; ``hours`` and ``peer_hours`` a run's of ``steps``
    steps, extrapolated. ``times_the_floor``: how many times the arithmetic's :data:`H200_FLOOR_MS` a step of the last
    stage takes, on the device that this number is of, and None on any other.
    """

    method: str
    device: str
    precision: str
    counted: Arithmetic
    ours: list[StageTiming]
    peer: list[StageTiming]
    steps: int
    times_the_floor: float | None

    @property
    def speedups(self) -> list[float]:
        """At each stage."""
        pairs = zip(self.ours, self.peer, strict=True)
        return [ours.timing.steps_per_second / peer.timing.steps_per_second for ours, peer in pairs]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **asdict(self),
            "speedups": self.speedups,
            "hours": run_hours(self.ours, self.steps),
            "peer_hours": run_hours(self.peer, self.steps),
        }


def compare(
    parts: Parts,
    config: Config,
    name: str,
    *,
    steps: int,
    warmup: int,
    pieces: Pieces | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Comparison:
    """Measures ``parts`` and then the same with a peer's choices (:func:`as_peer`, which leaves them changed).

    The peer's networks are float16 on a GPU and float32 on a CPU, and nothing of its steps is split, as ours are into
    ``pieces``. ``name`` is the prior's preset.

    Raises:
        InputError: the generator is no scene, or the prior's networks are not those of ``name``.
    """
    prior = parts.prior
    if not isinstance(parts.generator, NeRF) or not isinstance(prior, StableDiffusionPrior):
        raise InputError("--prior: measured are steps of a scene with Stable Diffusion")
    _check_networks(prior, name)
    counted = arithmetic(name, prior.image_size)
    state = {key: value.clone() for key, value in parts.generator.state_dict().items()}
    ours = bench_stages(parts, config, counted, steps=steps, warmup=warmup, on_step=on_step, pieces=pieces)
    floor = ours[-1].timing
    device = _device_name(parts.generator.device)
    comparable = "H200" in device and (name, prior.image_size, config.distill.method) == ("sd21", 512, "nfsd")

    # From the same scene and the same random numbers.
    parts.generator.load_state_dict(state)
    parts.rng.manual_seed(config.seed)
    on_gpu = parts.generator.device.type == "cuda"
    release_compiled(prior)
    parts = replace(parts, optimizer=build_optimizer(parts.generator, config.train))
    peer_parts = as_peer(parts, torch.float16 if on_gpu else torch.float32)
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
    peer = bench_stages(peer_parts, config, counted, steps=steps, warmup=warmup, on_step=on_step)
    return Comparison(
        method=config.distill.method,
        device=device,
        precision=config.machine.precision,
        counted=counted,
        ours=ours,
        peer=peer,
        steps=config.train.steps,
        times_the_floor=1e3 / floor.steps_per_second / H200_FLOOR_MS if comparable else None,
    )


def _check_networks(prior: StableDiffusionPrior, name: str) -> None:
    expected = random_networks(name, "meta")[:2]
    for network, own in zip(prior.networks, expected, strict=True):
        count, wanted = (sum(value.numel() for value in one.parameters()) for one in (network, own))
        if count != wanted:
            raise InputError(
                f"--prior {name}: its {type(own).__name__} has {wanted:,} parameters, and the one loaded {count:,}; "
                "leave prior.model and prior.vae as they are"
            )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def count_steps(config: Config, steps: int, warmup: int) -> int:
    """How often :func:`compare` calls ``on_step``."""
    return math.prod((2, len(stages(config.train)), steps + warmup))
