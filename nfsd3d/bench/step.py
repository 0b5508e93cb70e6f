"""Measurements of a training step: which part of it takes how long."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from nfsd3d.bench.clock import now
from nfsd3d.settings import TrainConfig
from nfsd3d.train.build import Parts
from nfsd3d.train.pieces import Pieces
from nfsd3d.train.plan import plan_at
from nfsd3d.train.step import step_loss


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
    """Adds up seconds by part."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = now(self.device)
        yield
        self.seconds[name] += now(self.device) - started


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
                started = now(device)
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
    total = now(device) - started
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
