"""What loggers keep of a finished run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def results_of(directory: Path, summary: Mapping[str, Any]) -> list[Path]:
    """The files that the run has exported, as far as they are there."""
    return [path for name in summary.get("exported", []) if (path := directory / name).is_file()]


def finite_numbers(metrics: Mapping[str, float]) -> dict[str, float]:
    """The numbers without those that are not finite, which not every service can hold."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
