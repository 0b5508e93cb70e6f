"""metrics.jsonl and TensorBoard events: one entry per logged step, flushed immediately."""

import json
import math
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypedDict, cast

from nfsd3d.errors import InputError
from nfsd3d.runs.files import write_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

RENAMED = {"particle_loss": "lora_loss"}
"""Names of version 0.1, read for one minor version."""


class Metrics(TypedDict, total=False):
    """The numbers of a logged step; see `nfsd3d.train.step.StepMetrics` for those that the step reports."""

    grad_norm: float
    grad_norm_delta_c: float
    grad_norm_rest: float
    grad_norm_parameters: float
    psnr: float
    opacity: float
    samples_per_ray: float
    lora_loss: float
    t_min: float
    t_max: float
    resolution: int
    learning_rate_factor: float
    steps_per_second: float
    seconds: float


class MetricsWriter:
    """Appends to ``metrics.jsonl`` in a run directory, and to TensorBoard events if asked; final, a context manager."""

    def __init__(self, run_dir: Path, finished: int, tensorboard: bool) -> None:
        """Resumes after ``finished`` steps: lines of later steps, which will be repeated, are dropped.

        Raises:
            InputError: TensorBoard is asked for and not installed.
        """
        path = run_dir / "metrics.jsonl"
        if path.exists():
            kept = [line for line in read_metrics(path) if (line["step"] or 0) <= finished]
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._stream = path.open("a", encoding="utf-8")
        self._events = _tensorboard_writer(run_dir / "tensorboard", finished + 1) if tensorboard else None

    def write(self, step: int, metrics: Metrics) -> None:
        """Appends the line of ``step`` (the first is 1), flushed. Numbers that are not finite become null."""
        numbers = cast("dict[str, float]", metrics)
        plain = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._stream.write(json.dumps({"step": step, **plain}) + "\n")
        self._stream.flush()
        if self._events is not None:
            for name, value in numbers.items():
                self._events.add_scalar(name, value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stream.close()
        if self._events is not None:
            self._events.close()


def read_metrics(path: Path) -> list[dict[str, float | None]]:
    """The objects of a metrics file, without an unfinished last line (of a killed run); old names become current."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [current_names(json.loads(line)) for line in lines if line.endswith("\n")]


def series(lines: list[dict[str, float | None]], name: str) -> list[tuple[float, float]]:
    """(step, number) of every line that has a finite number of this name."""
    found = [(line["step"], line.get(name)) for line in lines]
    return [(step, value) for step, value in found if step is not None and value is not None]


def current_names(metrics: dict[str, float | None]) -> dict[str, float | None]:
    """The same numbers under the names of this version."""
    return {RENAMED.get(name, name): value for name, value in metrics.items()}


def _tensorboard_writer(folder: Path, first_step: int) -> "SummaryWriter":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "train.tensorboard=true: TensorBoard is not installed: pip install tensorboard, or set it to false"
        ) from error
    return SummaryWriter(str(folder), purge_step=first_step)
