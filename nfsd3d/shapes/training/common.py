"""Settings, progress bar and time budget of the embedded prior's training stages."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@dataclass(frozen=True)
class TeacherSettings:
    """Sizes and schedules of the embedded prior's training.

    ``size`` in pixels, ``images`` their number, ``*_minutes`` are time budgets of the schedules;
    the encoder is frozen for the last ``vae_decoder_share`` of the autoencoder's; ``snr_gamma`` and
    ``snr_floor`` weight the timesteps of the UNet's loss (see ``objectives.loss_weight``). ``objective`` is what the
    UNet predicts, "epsilon" or "flow", and ``flow_shift`` moves a flow's times of training towards noise.
    """

    size: int = 64
    images: int = 32768
    seed: int = 0
    vae_width: int = 48
    vae_batch: int = 32
    vae_learning_rate: float = 1.5e-3
    vae_latent_noise: float = 0.05
    vae_decoder_share: float = 0.2
    vae_minutes: float = 30.0
    unet_channels: tuple[int, ...] = (48, 96, 128)
    unet_layers: int = 1
    text_width: int = 128
    text_layers: int = 2
    unet_batch: int = 48
    unet_learning_rate: float = 1e-3
    unet_minutes: float = 120.0
    ema_decay: float = 0.999
    snr_gamma: float = 5.0
    snr_floor: float = 0.5
    objective: str = "epsilon"
    flow_shift: float = 1.5
    sample_minutes: float = 10.0
    checkpoint_minutes: float = 3.0


def progress_bar() -> Progress:
    """A progress bar with a text column, for stages of minutes to hours."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        refresh_per_second=1,
    )


def one_cycle(fraction: float, warmup: float = 0.05, floor: float = 0.02) -> float:
    """The factor of the learning rate at this fraction of the budget: a short rise, then a cosine to ``floor``."""
    if fraction < warmup:
        return max(fraction / warmup, 0.02)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, (fraction - warmup) / (1 - warmup))))


@dataclass
class Clock:
    """Seconds of training done, over all sessions, against a budget of ``minutes``.

    A cycle of the learning rate spans the budget. Raising the budget of a finished training starts another cycle.
    """

    minutes: float
    done: float = 0.0
    cycle_start: float = 0.0
    last: float = field(default_factory=time.monotonic)

    def tick(self) -> float:
        """Adds the time since the last tick and returns the fraction of the budget that is used (1 of no budget)."""
        now = time.monotonic()
        self.done, self.last = self.done + now - self.last, now
        return self.done / (60 * self.minutes) if self.minutes > 0 else 1.0

    def cycle(self) -> float:
        """The fraction of the present cycle of the learning rate that is used."""
        return (self.done - self.cycle_start) / (60 * self.minutes - self.cycle_start)

    def state(self) -> dict[str, float]:
        """The state for a checkpoint."""
        return {"seconds": self.done, "cycle_start": self.cycle_start, "budget": 60 * self.minutes}

    def resume(self, state: dict[str, Any]) -> None:
        """Restores the ``state()`` of a checkpoint."""
        self.done = state["seconds"]
        finished = self.done >= state["budget"] and self.done < 60 * self.minutes
        self.cycle_start = self.done if finished else state["cycle_start"]
        self.last = time.monotonic()


def batches_of(indices: np.ndarray, size: int, seed: int) -> Iterator[np.ndarray]:
    """Endless shuffled batches of indices. Raises ValueError for fewer indices than one batch."""
    if len(indices) < size:
        raise ValueError(f"{len(indices)} images do not fill a batch of {size}: render more images")
    random = np.random.default_rng(seed)
    while True:
        order = random.permutation(indices)
        for start in range(0, len(order) - size + 1, size):
            yield order[start : start + size]
