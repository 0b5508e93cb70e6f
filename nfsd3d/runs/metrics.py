"""metrics.jsonl: one line per logged step, flushed immediately."""

import json
import math
import sys
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from itertools import pairwise, zip_longest
from pathlib import Path
from types import TracebackType
from typing import Self, TypedDict, cast

from nfsd3d.errors import InputError
from nfsd3d.runs.files import json_object, read_bytes, write_text

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
    guidance_scale: float
    retries: int
    steered: int
    steps_per_second: float
    seconds: float


class MetricsWriter:
    """Appends to ``metrics.jsonl`` in a run directory; final, a context manager."""

    def __init__(self, run_dir: Path, finished: int, every: int | None = None) -> None:
        """Resumes after ``finished`` steps, and repairs the file.

        Lines of later steps, which will be repeated, are dropped. So are unreadable ones, which a line on stderr
        counts. It also names the last steps without a line, where one in ``every`` steps has one.

        Raises:
            OSError: the file cannot be read or written.
        """
        path = run_dir / "metrics.jsonl"
        there = path.exists()
        lines, dropped = _read(path) if there else ([], 0)
        kept = [line for line in lines if _step(line) <= finished]
        if there:  # even if it has no line: a first one without an end would swallow the next
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        _warn(path, dropped, [_step(line) for line in kept], finished, every)
        self._stream = path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: Metrics) -> None:
        """Appends the line of ``step`` (the first is 1), flushed. Numbers that are not finite become null.

        Raises:
            OSError: it cannot be written.
        """
        self._stream.write(json.dumps({"step": step, **finite(metrics)}) + "\n")
        self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes the file.

        Raises:
            OSError: what is buffered cannot be written, unless the block has failed: it did so for the same reason.
        """
        with suppress(OSError) if error is not None else nullcontext():
            self._stream.close()


def finite(metrics: Metrics) -> Metrics:
    """The numbers with None (null) for those that are not finite, which JSON does not have."""
    numbers = cast("dict[str, float | None]", metrics)
    plain = {name: value if value is not None and math.isfinite(value) else None for name, value in numbers.items()}
    return cast("Metrics", plain)


def read_metrics(path: Path) -> list[dict[str, float | None]]:
    """The objects of a metrics file with increasing steps, under current names; empty without a file.

    Lines that cannot be read are skipped: those of a damaged file, and the unfinished last one of a killed run.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        return _read(path)[0] if path.exists() else []
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error


def _read(path: Path) -> tuple[list[dict[str, float | None]], int]:
    """The lines that can be read, and how many others there are, apart from the unfinished last one of a killed run."""
    *texts, last = read_bytes(path).split(b"\n")
    found = [line for line in map(_parsed, texts) if line is not None]
    kept: list[dict[str, float | None]] = []
    for line, following in zip_longest(found, found[1:]):
        before = _step(kept[-1]) if kept else -1
        # A step that was damaged to a larger one would drop all lines up to it: the next line shows it.
        too_large = following is not None and before < _step(following) <= _step(line)
        if before < _step(line) and not too_large:
            kept.append(line)
    unfinished = last.startswith(b"{") or not last
    return kept, len(texts) - len(kept) + (not unfinished)


def _parsed(text: bytes) -> dict[str, float | None] | None:
    """The object of a line, if it has an integer step and otherwise numbers and nulls; else None."""
    try:
        line = json_object(text)
    except ValueError:
        return None
    if type(line.get("step")) is not int:
        return None
    largest = sys.float_info.max
    if any(value is not None and not isinstance(value, int | float) for value in line.values()):
        return None
    if any(value is not None and not -largest <= value <= largest for value in line.values()):
        return None
    return current_names(line)


def _step(line: Mapping[str, float | None]) -> int:
    return int(line["step"] or 0)


def _warn(path: Path, dropped: int, steps: list[int], finished: int, every: int | None) -> None:
    """Prints what is missing from a metrics file with lines of ``steps``, if anything, as one line on stderr."""
    missing = []
    if dropped:
        missing.append(f"{dropped} unreadable {'line is' if dropped == 1 else 'lines are'} dropped")
    # The run may have logged more rarely before it was resumed.
    spacings = [later - earlier for earlier, later in pairwise([0, *steps])]
    last = max(steps, default=0)
    if every is not None and finished - last >= max([every, *spacings]):
        steps_without = f"step {finished}" if finished == last + 1 else f"steps {last + 1} to {finished}"
        missing.append(f"there are no lines of {steps_without}")
    if missing:
        print(f"{path} is damaged: {' and '.join(missing)}", file=sys.stderr)


def series(lines: list[dict[str, float | None]], name: str) -> list[tuple[float, float]]:
    """(step, number) of every line that has a finite number of this name."""
    found = [(line["step"], line.get(name)) for line in lines]
    return [(step, value) for step, value in found if step is not None and value is not None]


def current_names(metrics: dict[str, float | None]) -> dict[str, float | None]:
    """The same numbers under the names of this version."""
    return {RENAMED.get(name, name): value for name, value in metrics.items()}
