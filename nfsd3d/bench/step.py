"""Benchmark of a training step: the time of each of its parts."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nfsd3d.bench.clock import Stopwatch, now
from nfsd3d.settings.train import TrainSettings
from nfsd3d.train.build import Parts
from nfsd3d.train.divergence import drop_unless_finite
from nfsd3d.train.memory.chunking import ChunkSizes
from nfsd3d.train.plan import plan_at
from nfsd3d.train.step import step_loss

PARTS = ("occupancy", "render", "encode", "UNet", "encode, backward", "render, backward", "optimiser")


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

    @property
    def prior_milliseconds(self) -> float:
        """Those of the prior's networks: encoder, UNet, and the encoder's gradient."""
        return sum(self.milliseconds[name] for name in ("encode", "UNet", "encode, backward"))


@contextmanager
def _replaced(owner: object, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Replaces ``owner.name`` within the block."""
    setattr(owner, name, function)  # an instance attribute shadows the class's method
    try:
        yield
    finally:
        delattr(owner, name)


def _timed(watch: Stopwatch, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with the time of its calls added to ``part``."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with watch.part(part):
            return function(*args, **kwargs)

    return call


def bench_step(
    parts: Parts,
    train: TrainSettings,
    *,
    steps: int,
    warmup: int = 5,
    on_step: Callable[[], None] = lambda: None,
    chunks: ChunkSizes | None = None,
) -> StepTiming:
    """Times ``steps`` training steps from the generator's present state, after ``warmup`` unmeasured ones.

    Parts: "occupancy" (its updates), "render" (forward), "encode" (forward), "UNet", "encode, backward" and "render,
    backward" (the gradient through both), "optimiser" (with the clipping) and "rest" (cameras, noise, the method
    itself, and a GPU's idle time between them). ``on_step`` is called after each step; ``chunks`` are the chunk sizes
    (default: no chunks).

    Steps follow each other without host-device synchronisation, as in training.
    """
    device = parts.generator.device
    parameters = [parameter for group in parts.optimizer.param_groups for parameter in group["params"]]
    watch = Stopwatch(device)
    generator, prior, lora = parts.generator, parts.prior, parts.distillation.lora
    encode = _timed(watch, "encode", prior.encode)
    passed: list[Any] = []  # marks at the end of the encoder's backward pass

    def watched_encode(image: Tensor, **options: Any) -> Tensor:
        if image.requires_grad:
            image.register_hook(lambda gradient: passed.append(watch.mark()))
        return encode(image, **options)

    with (
        _replaced(generator, "update", _timed(watch, "occupancy", generator.update)),
        _replaced(generator, "render", _timed(watch, "render", generator.render)),
        _replaced(prior, "encode", watched_encode),
        _replaced(prior, "predict_eps", _timed(watch, "UNet", prior.predict_eps)),
    ):
        for step in range(-warmup, steps):
            if step == 0:
                watch.clear()
                evaluations, samples = 0, torch.zeros((), device=device)
                started = now(device)
            progress = (step + warmup) / max(train.steps, steps + warmup)
            plan = replace(plan_at(train, progress), chunks=chunks or ChunkSizes())
            generator.update(step + warmup, parts.rng)
            parts.optimizer.zero_grad(set_to_none=True)
            result = step_loss(generator, prior, parts.bank, parts.distillation, parts.ranges, plan, parts.rng)
            passed.clear()
            start = watch.mark()
            result.loss.backward()
            ended, between = watch.mark(), passed[-1] if passed else start
            watch.add("encode, backward", start, between)
            watch.add("render, backward", between, ended)
            with watch.part("optimiser"):
                limit = math.inf if train.gradient_clip is None else train.gradient_clip
                norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
                if device.type != "cpu":
                    drop_unless_finite([parts.optimizer], norm)
                parts.optimizer.step()
                if lora is not None:
                    lora.optimizer.step()
            if step >= 0:
                evaluations += result.evaluations
                if result.metrics.samples_per_ray is not None:
                    samples += result.metrics.samples_per_ray
            on_step()
    total, spent = now(device) - started, watch.seconds()
    seconds = {name: spent[name] for name in PARTS}
    seconds["rest"] = total - sum(seconds.values())
    return StepTiming(
        milliseconds={name: 1e3 * value / steps for name, value in seconds.items()},
        shares={name: value / total for name, value in seconds.items()},
        steps_per_second=steps / total,
        samples_per_ray=float(samples) / steps,
        evaluations=evaluations / steps,
    )
