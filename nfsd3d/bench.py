"""Measurements: how fast the hash encoding is, and which part of a training step takes how long."""

import math
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from nfsd3d.cameras import CameraRanges, sample_cameras
from nfsd3d.field.hashgrid import HashEncoding, HashGridSpec, Layout, hash_encoding
from nfsd3d.field.hashgrid_torch import corners, interpolate
from nfsd3d.generator.nerf import NeRF
from nfsd3d.render.samplers import sample_rays
from nfsd3d.settings import TrainConfig
from nfsd3d.train.build import Parts
from nfsd3d.train.pieces import Pieces
from nfsd3d.train.plan import plan_at
from nfsd3d.train.step import step_loss

FAST = "numba"
"""The implementation that the others are compared with."""
TOLERANCE = 1e-4
"""How far, relative to the reference's norm, a benchmarked implementation may be from it."""


@dataclass(frozen=True)
class EncodingTiming:
    """Milliseconds of one implementation of the hash encoding, the fastest of all rounds.

    ``forward`` without gradient; ``training`` forward and backward to the table. ``forward_ratio`` and
    ``training_ratio``: how many times longer than the numba kernel's.
    """

    name: str
    forward: float
    training: float
    forward_ratio: float
    training_ratio: float


def demo_positions(nerf: NeRF, ranges: CameraRanges, views: int, resolution: int) -> Tensor:
    """[N,3] in the unit cube: where a generator at its start is sampled for one training step's views."""
    rng = torch.Generator().manual_seed(0)
    nerf.update(0, rng)
    rays = sample_cameras(rng, views, resolution, ranges).to(nerf.device).rays()
    samples = sample_rays(
        rays,
        nerf.occupancy,
        step_size=nerf.step_size,
        max_samples=nerf.settings.max_samples,
        jitter=rng,
        backend=nerf.sampler_backend,
    )
    return samples.positions(rays) / (2 * nerf.settings.radius) + 0.5


def encoding_implementations(spec: HashGridSpec, *, compiled: bool) -> dict[str, HashEncoding]:
    """The implementations of the encoding that run on a CPU, with one and the same table.

    With ``compiled`` also torch.compile's versions (Inductor): of the reference, and of the same maths as a plain
    gather, which it fuses better.
    """
    reference, fast = hash_encoding(spec, "torch"), hash_encoding(spec, FAST)
    assert isinstance(reference, HashEncoding)
    assert isinstance(fast, HashEncoding)
    found = {"embedding_bag": reference}
    if compiled:
        found["embedding_bag, torch.compile"] = HashEncoding(spec, torch.compile(interpolate))
        found["gather, torch.compile"] = HashEncoding(spec, torch.compile(_gather))
    found[FAST] = fast
    torch.nn.init.normal_(reference.table)
    for encoding in found.values():
        encoding.load_state_dict(reference.state_dict())
    return found


def can_compile() -> bool:
    """Whether torch.compile has the C++ compiler that it needs on a CPU."""
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def bench_encoding(
    implementations: dict[str, HashEncoding],
    positions: Tensor,
    *,
    rounds: int,
    on_round: Callable[[], None] = lambda: None,
) -> list[EncodingTiming]:
    """Times every implementation ``rounds`` times at ``positions`` [N,3], in turns, so that noise hits all alike.

    The first round compiles and is not counted. ``on_round`` is called after each, ``rounds`` + 1 times.

    Raises:
        AssertionError: an implementation's features or gradients differ from the first one's.
    """
    width = next(iter(implementations.values())).width
    gradient = torch.randn(positions.shape[0], width, generator=torch.Generator().manual_seed(0))
    forward: dict[str, list[float]] = defaultdict(list)
    training: dict[str, list[float]] = defaultdict(list)
    expected: tuple[Tensor, Tensor] | None = None
    for number in range(rounds + 1):
        for name, encoding in implementations.items():
            encoding.zero_grad()
            started = time.perf_counter()
            with torch.no_grad():
                features = encoding(positions)
            between = time.perf_counter()
            encoding(positions).backward(gradient)
            ended = time.perf_counter()
            if number:
                forward[name].append(1e3 * (between - started))
                training[name].append(1e3 * (ended - between))
                continue
            assert encoding.table.grad is not None
            found = features, encoding.table.grad
            expected = expected or found
            for one, other in zip(found, expected, strict=True):
                assert (one - other).norm() <= TOLERANCE * other.norm(), f"{name} computes something else"
        on_round()
    # Whatever else runs on the machine only ever adds time.
    best = {name: (min(forward[name]), min(training[name])) for name in implementations}
    fast = best[FAST]
    return [EncodingTiming(name, a, b, a / fast[0], b / fast[1]) for name, (a, b) in best.items()]


def _gather(positions: Tensor, table: Tensor, layout: Layout) -> Tensor:
    """The reference's maths without ``embedding_bag``."""
    entries, weights = corners(positions, layout)
    return (table[entries] * weights[..., None]).sum(2).flatten(1)


@dataclass(frozen=True)
class StepTiming:
    """Where the time of a training step goes.

    ``milliseconds`` per step by part (their sum is the whole step), ``shares`` of it in [0,1], and means over the
    steps: ``steps_per_second``, ``samples_per_ray`` and ``evaluations`` of the UNet per step.
    """

    milliseconds: dict[str, float]
    shares: dict[str, float]
    steps_per_second: float
    samples_per_ray: float
    evaluations: float


@dataclass
class _Clock:
    """Adds up seconds by part; waits for the GPU, where there is one, before it looks."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = self.now()
        yield
        self.seconds[name] += self.now() - started

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@contextmanager
def _timed(clock: _Clock, part: str, owner: object, method: str) -> Iterator[None]:
    """Within the block, every call of ``owner.method`` counts as ``part``."""
    original = getattr(owner, method)

    def call(*args: Any, **kwargs: Any) -> Any:
        with clock.part(part):
            return original(*args, **kwargs)

    setattr(owner, method, call)  # in this one object, before its class's method
    try:
        yield
    finally:
        delattr(owner, method)


def bench_step(
    parts: Parts,
    train: TrainConfig,
    *,
    steps: int,
    warmup: int = 5,
    on_step: Callable[[], None] = lambda: None,
    pieces: Pieces | None = None,
) -> StepTiming:
    """Times ``steps`` training steps from the generator's present state, after ``warmup`` that do not count.

    Parts: "occupancy" (its updates), "render" (forward), "encode" (forward), "UNet", "backward" (through encoder and
    renderer), "optimiser" (with the clipping) and "rest" (cameras, noise, the method itself). ``on_step`` is called
    after each step; ``pieces`` is what a step computes at once (everything).
    """
    device = parts.generator.device
    parameters = [parameter for group in parts.optimizer.param_groups for parameter in group["params"]]
    clock = _Clock(device)
    evaluations, samples = 0, 0.0
    with (
        _timed(clock, "occupancy", parts.generator, "update"),
        _timed(clock, "render", parts.generator, "render"),
        _timed(clock, "encode", parts.prior, "encode"),
        _timed(clock, "UNet", parts.prior, "predict_eps"),
    ):
        for step in range(-warmup, steps):
            if step == 0:
                clock.seconds.clear()
                evaluations, samples = parts.prior.evaluations, 0.0
                started = clock.now()
            progress = (step + warmup) / max(train.steps, steps + warmup)
            plan = replace(plan_at(train, progress), pieces=pieces or Pieces())
            parts.generator.update(step + warmup, parts.rng)
            loss, metrics = step_loss(
                parts.generator, parts.prior, parts.bank, parts.distillation, parts.ranges, plan, parts.rng
            )
            parts.optimizer.zero_grad(set_to_none=True)
            with clock.part("backward"):
                loss.backward()
            with clock.part("optimiser"):
                limit = math.inf if train.gradient_clip is None else train.gradient_clip
                torch.nn.utils.clip_grad_norm_(parameters, limit)
                parts.optimizer.step()
            samples += float(metrics["samples_per_ray"])
            on_step()
    total = clock.now() - started
    names = ("occupancy", "render", "encode", "UNet", "backward", "optimiser")
    seconds = {name: clock.seconds[name] for name in names}
    seconds["rest"] = total - sum(seconds.values())
    return StepTiming(
        milliseconds={name: 1e3 * value / steps for name, value in seconds.items()},
        shares={name: value / total for name, value in seconds.items()},
        steps_per_second=steps / total,
        samples_per_ray=samples / steps,
        evaluations=(parts.prior.evaluations - evaluations) / steps,
    )
