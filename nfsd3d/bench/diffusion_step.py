"""Benchmark of a step with a full-size diffusion model: time by part, FLOPs, and the baseline's time."""

import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from nfsd3d.bench.baseline import as_baseline
from nfsd3d.bench.flops import Arithmetic, arithmetic, device_tflops
from nfsd3d.bench.step import StepTiming, bench_step
from nfsd3d.config.schema import Config
from nfsd3d.errors import InputError
from nfsd3d.generators.nerf.nerf import NeRF
from nfsd3d.prior.architectures import random_networks
from nfsd3d.prior.compiled.cuda_graphs import peak_bytes
from nfsd3d.prior.diffusers_prior import DiffusersPrior
from nfsd3d.runs.summary import device_name
from nfsd3d.settings.train import TrainSettings
from nfsd3d.train.build import PRECISIONS, Parts, build_optimizer
from nfsd3d.train.compilation import release_compiled
from nfsd3d.train.memory.chunking import ChunkSizes
from nfsd3d.train.plan import plan_at


@dataclass(frozen=True)
class Stage:
    """A resolution of the recipe: from the fraction ``start`` of training to ``end``."""

    resolution: int
    start: float
    end: float

    @property
    def middle(self) -> float:
        """The fraction of training that represents the stage."""
        return (self.start + self.end) / 2


@dataclass(frozen=True)
class StageTiming:
    """A stage of the recipe, measured: see ``bench.StepTiming`` for ``timing``.

    ``tflop`` are a step's minimal TFLOP, ``tflops`` the achieved TFLOP/s. ``peak_memory_gb`` is the peak memory of
    tensors on a GPU, ``reserved_memory_gb`` that of torch's allocator; None on a CPU.
    """

    stage: Stage
    timing: StepTiming
    tflop: float
    tflops: float
    peak_memory_gb: float | None
    reserved_memory_gb: float | None


def stages(train: TrainSettings) -> list[Stage]:
    """The resolutions of a recipe, in order."""
    if isinstance(train.resolution, int):
        return [Stage(train.resolution, 0.0, 1.0)]
    starts = [start for start, _ in train.resolution]
    ends = [*starts[1:], 1.0]
    found = zip(train.resolution, ends, strict=True)
    return [Stage(resolution, start, end) for (start, resolution), end in found if end > start]


def at_most(config: Config, resolution: int) -> Config:
    """The configuration with views of at most ``resolution`` pixels per side."""
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
    chunks: ChunkSizes | None = None,
) -> list[StageTiming]:
    """Every stage of the recipe, ``steps`` timed steps each, from the generator's present state."""
    device = parts.generator.device
    found = []
    for stage in stages(config.train):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        train = _frozen(config.train, stage)
        timing = bench_step(parts, train, steps=steps, warmup=warmup, on_step=on_step, chunks=chunks)
        tflop = counted.step(timing.evaluations, config.train.batch_size)
        memory: list[float | None] = [None, None]
        if device.type == "cuda":
            peaks = peak_bytes(device), torch.cuda.max_memory_reserved(device)
            memory = [size / 2**30 for size in peaks]
        found.append(StageTiming(stage, timing, tflop, tflop * timing.steps_per_second, *memory))
    return found


def _frozen(train: TrainSettings, stage: Stage) -> TrainSettings:
    """The recipe with all schedules constant, at their values in the middle of a stage."""
    plan = plan_at(train, stage.middle)
    regularizers = replace(train.regularizers, **plan.regularizers)
    held = {name: getattr(plan, name) for name in ("t_min", "t_max", "learning_rate_factor")}
    return replace(train, **held, resolution=stage.resolution, regularizers=regularizers)


def run_hours(timings: list[StageTiming], steps: int) -> float:
    """Hours of a run of ``steps`` steps, extrapolated from warm steps of each stage of its recipe."""
    seconds = (steps * (t.stage.end - t.stage.start) / t.timing.steps_per_second for t in timings)
    return sum(seconds) / 3600


@dataclass(frozen=True)
class Comparison:
    """A method with this package's settings and with a ``baseline``'s, for each stage of one recipe.

    ``speedups`` are the baseline's milliseconds divided by ours, for each stage. ``hours`` and ``baseline_hours`` are
    extrapolated to a run of ``steps`` steps. ``device_tflops`` is the device's speed of matrix products in our
    ``precision``.
    """

    method: str
    device: str
    precision: str
    counted: Arithmetic
    ours: list[StageTiming]
    baseline: list[StageTiming]
    steps: int
    device_tflops: float

    def floor_ms(self, timing: StageTiming) -> float:
        """Milliseconds of the prior's arithmetic in a step of a stage, at the device's speed."""
        return 1e3 * timing.tflop / self.device_tflops

    @property
    def speedups(self) -> list[float]:
        """Speedup at each stage."""
        pairs = zip(self.ours, self.baseline, strict=True)
        return [ours.timing.steps_per_second / baseline.timing.steps_per_second for ours, baseline in pairs]

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain values for JSON."""
        return {
            **asdict(self),
            "speedups": self.speedups,
            "floors_ms": [self.floor_ms(timing) for timing in self.ours],
            "prior_ms": [timing.timing.prior_milliseconds for timing in self.ours],
            "baseline_prior_ms": [timing.timing.prior_milliseconds for timing in self.baseline],
            "hours": run_hours(self.ours, self.steps),
            "baseline_hours": run_hours(self.baseline, self.steps),
        }


def compare(
    parts: Parts,
    config: Config,
    name: str,
    *,
    steps: int,
    baseline_steps: int,
    warmup: int,
    chunks: ChunkSizes | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Comparison:
    """Measures ``parts``, and then the same with a baseline's settings (:func:`as_baseline` modifies ``parts``).

    Each stage has ``steps`` and ``baseline_steps`` steps, after ``warmup`` steps that are not measured. The baseline's
    networks are float16 on a GPU and float32 on a CPU. Only our steps are split into ``chunks``. ``name`` is the
    prior's preset.

    Raises:
        InputError: the generator is no scene, or the prior's networks are not those of ``name``.
    """
    prior = parts.prior
    if not isinstance(parts.generator, NeRF) or not isinstance(prior, DiffusersPrior):
        raise InputError("--prior: measured are steps of a scene with Stable Diffusion")
    _check_networks(prior, name)
    counted = arithmetic(name, prior.image_size)
    state = {key: value.clone() for key, value in parts.generator.state_dict().items()}
    ours = bench_stages(parts, config, counted, steps=steps, warmup=warmup, on_step=on_step, chunks=chunks)
    device = parts.generator.device

    # From the same scene and the same random numbers.
    parts.generator.load_state_dict(state)
    parts.rng.manual_seed(config.seed)
    on_gpu = device.type == "cuda"
    release_compiled(prior)
    parts = replace(parts, optimizer=build_optimizer(parts.generator, config.train))
    baseline_parts = as_baseline(parts, torch.float16 if on_gpu else torch.float32)
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
    peak = device_tflops(device, PRECISIONS[config.machine.precision])
    baseline = bench_stages(baseline_parts, config, counted, steps=baseline_steps, warmup=warmup, on_step=on_step)
    return Comparison(
        method=config.distill.method,
        device=device_name(str(device)),
        precision=config.machine.precision,
        counted=counted,
        ours=ours,
        baseline=baseline,
        steps=config.train.steps,
        device_tflops=peak,
    )


def _check_networks(prior: DiffusersPrior, name: str) -> None:
    expected = random_networks(name, "meta")[:2]
    for network, own in zip(prior.networks, expected, strict=True):
        count, wanted = (sum(value.numel() for value in one.parameters()) for one in (network, own))
        if count != wanted:
            raise InputError(
                f"--prior {name}: its {type(own).__name__} has {wanted:,} parameters, and the one loaded {count:,}; "
                "leave prior.model and prior.vae as they are"
            )


def count_steps(config: Config, steps: int, baseline_steps: int, warmup: int) -> int:
    """The number of calls of ``on_step`` in :func:`compare`."""
    return len(stages(config.train)) * (steps + baseline_steps + 2 * warmup)
