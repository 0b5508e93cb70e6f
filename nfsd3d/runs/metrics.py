"""metrics.jsonl and TensorBoard: one object per logged step, on disk as soon as it is known."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nfsd3d.errors import InputError
from nfsd3d.runs.files import write_text


class MetricsWriter:
    """Appends to ``metrics.jsonl`` in a run directory, and to TensorBoard events if asked; final, a context manager."""

    def __init__(self, run_dir: Path, finished: int, tensorboard: bool) -> None:
        """Continues a run after ``finished`` steps: what was logged of later ones is dropped, they are done again.

        Raises:
            InputError: TensorBoard is asked for and not installed.
        """
        path = run_dir / "metrics.jsonl"
        if path.exists():
            kept = [line for line in read_metrics(path) if line["step"] <= finished]
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._stream = path.open("a", encoding="utf-8")
        self._events = _tensorboard_writer(run_dir / "tensorboard", finished + 1) if tensorboard else None

    def write(self, metrics: Mapping[str, float | int]) -> None:
        """Appends one line, flushed; ``metrics`` has the key ``step`` (the first is 1).

        Numbers that are not finite become null.
        """
        plain = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
        self._stream.write(json.dumps(plain) + "\n")
        self._stream.flush()
        if self._events is not None:
            for key, value in metrics.items():
                if key != "step":
                    self._events.add_scalar(key, value, int(metrics["step"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stream.close()
        if self._events is not None:
            self._events.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The objects of a metrics file; an unfinished last line (a killed run) is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            lines.append(json.loads(line))
    return lines


def _tensorboard_writer(folder: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "train.tensorboard=true: TensorBoard is not installed: pip install tensorboard, or set it to false"
        ) from error
    return SummaryWriter(str(folder), purge_step=first_step)
