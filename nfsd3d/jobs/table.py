"""Tables of a set of jobs, derived from the jobs' directories: CSV, JSON, and text for a terminal."""

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nfsd3d.jobs.manifest import Job, Manifest, job_count
from nfsd3d.jobs.state import STATUSES, SUMMARY, JobState, object_in, states
from nfsd3d.runs.files import write_json, write_text

CSV, JSON = "sweep.csv", "sweep.json"
_PLAN = {"steps_per_second", "seconds", "resolution", "learning_rate_factor", "t_min", "t_max"}
"""Metrics that describe a run's plan or speed instead of its result."""

_FORMULA = re.compile(r"[=+\-@\t\r]")
"""How a text begins that a spreadsheet computes."""


@dataclass(frozen=True)
class Row:
    """A job, its state, and the final metrics of its run by name."""

    job: Job
    state: JobState
    metrics: dict[str, float]


def rows_of(manifest: Manifest) -> list[Row]:
    """A row for each job."""
    return [Row(job, state, _final_metrics(manifest.run_dir(job), state)) for job, state in states(manifest)]


def write_tables(manifest: Manifest, rows: Sequence[Row]) -> list[Path]:
    """Writes ``sweep.csv`` and ``sweep.json`` into the set's folder; returns their paths."""
    metrics = metric_names(rows)
    columns = ["job", *manifest.columns, "status", "reason", "steps", "seconds", "run_dir", *metrics]
    stream = io.StringIO()
    table = csv.writer(stream)
    table.writerow(columns)
    for row in rows:
        state = row.state
        outcome = [state.status, state.reason, state.steps, state.seconds, str(manifest.run_dir(row.job))]
        values = [row.job.number, *row.job.values, *outcome, *(row.metrics.get(name) for name in metrics)]
        table.writerow(map(_no_formula, values))
    write_text(manifest.folder / CSV, stream.getvalue())
    write_json(manifest.folder / JSON, {"jobs": [record_of(manifest, row) for row in rows]})
    return [manifest.folder / CSV, manifest.folder / JSON]


def record_of(manifest: Manifest, row: Row) -> dict[str, object]:
    """A row as plain values for JSON."""
    state, attempt = row.state, row.state.attempt
    return {
        "job": row.job.number,
        "values": dict(zip(manifest.columns, row.job.values, strict=True)),
        "directory": row.job.directory,
        "status": state.status,
        "reason": state.reason or None,
        "steps": state.steps,
        "steps_planned": state.planned,
        "seconds": state.seconds,
        "steps_per_second": state.steps_per_second,
        "seconds_left": state.seconds_left,
        "engine": None if attempt is None else attempt.engine,
        "id": None if attempt is None else attempt.id,
        "host": None if attempt is None else attempt.host,
        "attempts": 0 if attempt is None else attempt.attempt,
        "metrics": row.metrics,
    }


def metric_names(rows: Sequence[Row]) -> list[str]:
    """The names of all final metrics, in the order of their first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.metrics))


def counts_line(rows: Sequence[Row]) -> str:
    """The number of jobs in each state: ``16 jobs: 12 done, 3 running, 1 failed``."""
    counted = Counter(row.state.status for row in rows)
    parts = [f"{counted[status]} {status}" for status in sorted(counted, key=_order)]
    return f"{job_count(len(rows))}: {', '.join(parts) or 'none'}"


def text_table(manifest: Manifest, rows: Sequence[Row]) -> str:
    """A line for each row, in aligned columns."""
    header = ["job", *manifest.columns, "status", "steps", "steps/s", "left", "engine", "reason"]
    lines = [[_printable(value) for value in line] for line in (header, *map(_text, rows))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(value.ljust(width) for value, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _no_formula(value: object) -> object:
    """A text that a spreadsheet would take for a formula, with an apostrophe before it; other values as they are."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) and not _is_number(value) else value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _text(row: Row) -> list[str]:
    state, attempt = row.state, row.state.attempt
    return [
        str(row.job.number),
        *(value if len(value) <= 40 else f"{value[:37]}..." for value in row.job.values),
        state.status,
        "" if state.steps is None else f"{state.steps}/{'?' if state.planned is None else state.planned}",
        "" if state.steps_per_second is None else f"{state.steps_per_second:.2f}",
        "" if state.seconds_left is None else _clock(state.seconds_left),
        "" if attempt is None else f"{attempt.engine} {attempt.id}".strip(),
        state.reason,
    ]


def _printable(text: str) -> str:
    """A text with its control characters, such as ends of lines, escaped."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _order(status: str) -> int:
    return ("done", *(known for known in STATUSES if known != "done")).index(status)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _final_metrics(run_dir: Path, state: JobState) -> dict[str, float]:
    """The numbers of a run's ``final_metrics``; empty until it has ended."""
    if state.status not in ("done", "diverged", "failed"):
        return {}
    found = object_in(run_dir / SUMMARY).get("final_metrics")
    numbers = found.items() if isinstance(found, dict) else ()
    return {name: float(value) for name, value in numbers if isinstance(value, int | float) and name not in _PLAN}
