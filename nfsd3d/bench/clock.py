"""A clock and a stopwatch for a CPU or a GPU."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def now(device: torch.device) -> float:
    """Seconds on a clock, read after a host-device synchronisation on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Stopwatch:
    """Times parts of a device's work without synchronisation: on a GPU, marks are CUDA events.

    Synchronising at the end of each part would drain the GPU's queue and so change what is measured.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spans: list[tuple[str, Any, Any]] = []

    def mark(self) -> Any:
        """A time stamp: a CUDA event in the GPU's queue, or the CPU's clock."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def add(self, name: str, start: Any, end: Any) -> None:
        """Adds the time between two marks to part ``name``."""
        self._spans.append((name, start, end))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time of the block to part ``name``."""
        start = self.mark()
        yield
        self.add(name, start, self.mark())

    def clear(self) -> None:
        """Discards all marks."""
        self._spans.clear()

    def seconds(self) -> dict[str, float]:
        """Total seconds of each part, after a host-device synchronisation."""
        now(self._device)
        total: dict[str, float] = defaultdict(float)
        for name, start, end in self._spans:
            total[name] += end - start if isinstance(start, float) else start.elapsed_time(end) / 1e3
        return total
