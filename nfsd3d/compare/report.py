"""What the records of a tier say: means of each row, and paired differences with intervals, as Markdown."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nfsd3d.compare.records import Record
from nfsd3d.evaluate.tables import degrees, number, percent, table

RESAMPLES = 10_000
LEVEL = 0.95

Outcome = Callable[[Record], float | None]


def margin(record: Record) -> float | None:
    """The truth's log-probability over the best distractor's, in nats."""
    return record.score.get("margin")


def shape(record: Record) -> float | None:
    """Intersection over union with the true solid, over the best ellipsoid's."""
    iou, ellipsoid = record.score.get("iou"), record.score.get("ellipsoid_iou")
    return None if iou is None or ellipsoid is None else iou - ellipsoid


PRIMARY: dict[str, Outcome] = {"margin": margin, "IoU over the ellipsoid's": shape}
"""The primary outcomes, by their headings: continuous, so that few prompts tell methods apart."""


@dataclass(frozen=True)
class Interval:
    """A mean over ``prompts`` prompts and its bootstrap interval at ``LEVEL``."""

    mean: float
    low: float
    high: float
    prompts: int


@dataclass(frozen=True)
class Group:
    """The records of one row of a tier: the ``full`` runs, and those ``at_equal`` evaluations of the network.

    Where the full runs are as cheap as SDS, both are the same.
    """

    full: Sequence[Record]
    at_equal: Sequence[Record]


def bootstrap(values: Sequence[float], resamples: int = RESAMPLES, level: float = LEVEL) -> Interval:
    """The mean of ``values``, one for each prompt, and the percentile interval of resampled means; NaN without any."""
    sample = np.asarray(values, dtype=float)
    if len(sample) == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    chosen = np.random.default_rng(0).integers(len(sample), size=(resamples, len(sample)))
    low, high = np.quantile(sample[chosen].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(sample.mean()), float(low), float(high), len(sample))


def paired(ours: Sequence[Record], theirs: Sequence[Record], outcome: Outcome) -> Interval:
    """How much larger an outcome is in ``ours``: the difference at the same prompt and seed, averaged over the seeds
    of a prompt first, and then over prompts, which are resampled.
    """
    others = {(record.prompt, record.seed): outcome(record) for record in theirs}
    differences: dict[str, list[float]] = {}
    for record in ours:
        one, other = outcome(record), others.get((record.prompt, record.seed))
        if one is not None and other is not None:
            differences.setdefault(record.prompt, []).append(one - other)
    return bootstrap([sum(values) / len(values) for values in differences.values()])


def mean_over_prompts(records: Sequence[Record], outcome: Outcome) -> float:
    """The mean over prompts of the mean over seeds; NaN without any."""
    by_prompt: dict[str, list[float]] = {}
    for record in records:
        value = outcome(record)
        if value is not None:
            by_prompt.setdefault(record.prompt, []).append(float(value))
    means = [sum(values) / len(values) for values in by_prompt.values()]
    return sum(means) / len(means) if means else math.nan


def means_table(groups: Mapping[str, Group], *, flat: bool, equal: bool) -> str:
    """One row a method: means over its jobs, of pictures (``flat``) or scenes; ``equal`` adds the second column."""
    head = ["", "n", "margin", *(["at equal evaluations"] if equal else [])]
    head += [] if flat else ["IoU", "over ellipsoid", *(["at equal evaluations"] if equal else [])]
    head += ["object", "colour", "pattern", "R-Precision", *([] if flat else ["view error", "Janus"])]
    head += ["diverged", "seconds", "evaluations", *(["steps", "at equal evaluations"] if equal else ["steps"])]

    def cells(name: str, group: Group) -> list[str]:
        records = group.full

        def mean(outcome: Outcome, of: Sequence[Record] = records) -> float:
            return mean_over_prompts(of, outcome)

        row = [name, str(len(records)), number(mean(margin), 2)]
        row += [number(mean(margin, group.at_equal), 2)] if equal else []
        if not flat:
            row += [number(mean(_score("iou"))), _signed(mean(shape))]
            row += [_signed(mean(shape, group.at_equal))] if equal else []
        row += [percent(mean(_score(share))) for share in ("object", "color", "pattern", "retrieved")]
        if not flat:
            row += [degrees(_median(records, "view_error_deg")), percent(mean(_score("janus")))]
        row += [_count(records), number(mean(lambda r: r.seconds), 0), number(mean(lambda r: r.evaluations), 0)]
        return [*row, _steps(records), *([_steps(group.at_equal)] if equal else [])]

    return table(head, [cells(name, group) for name, group in groups.items()])


def differences_table(groups: Mapping[str, Group], baseline: Mapping[str, str], *, flat: bool, equal: bool) -> str:
    """Each row minus its baseline in the primary outcomes, with intervals; "" where nothing can be compared."""
    outcomes = {"margin": margin} if flat else PRIMARY
    head = ["", "minus", "prompts"]
    for heading in outcomes:
        head += [heading, *([f"{heading}, at equal evaluations"] if equal else [])]
    rows = []
    for name, other in baseline.items():
        if name == other or name not in groups or other not in groups:
            continue
        ours, theirs = groups[name], groups[other]
        found = []
        for outcome in outcomes.values():
            found.append(paired(ours.full, theirs.full, outcome))
            if equal:
                found.append(paired(ours.at_equal, theirs.at_equal, outcome))
        rows.append([name, other, str(max(interval.prompts for interval in found)), *map(_interval, found)])
    return table(head, rows) if rows else ""


def plain_rows(groups: Mapping[str, Group], baseline: Mapping[str, str]) -> dict[str, Any]:
    """The same numbers for ``--json``: by row, the means and the differences to its baseline."""
    rows: dict[str, Any] = {}
    for name, group in groups.items():
        scores = sorted({key for record in group.full for key in record.score if key != "margins"})
        row: dict[str, Any] = {"n": len(group.full)}
        row |= {key: mean_over_prompts(group.full, _score(key)) for key in scores}
        row["iou_over_ellipsoid"] = mean_over_prompts(group.full, shape)
        row["diverged"] = sum(record.status == "diverged" for record in group.full)
        row["seconds"] = mean_over_prompts(group.full, lambda record: record.seconds)
        row["evaluations"] = mean_over_prompts(group.full, lambda record: record.evaluations)
        row["at_equal_evaluations"] = {key: mean_over_prompts(group.at_equal, of) for key, of in PRIMARY.items()}
        other = baseline.get(name)
        if other is not None and other in groups and other != name:
            row["minus"] = other
            row["differences"] = {
                key: {
                    "full": paired(group.full, groups[other].full, outcome),
                    "at_equal_evaluations": paired(group.at_equal, groups[other].at_equal, outcome),
                }
                for key, outcome in PRIMARY.items()
            }
        rows[name] = row
    return rows


def _score(name: str) -> Outcome:
    return lambda record: record.score.get(name)


def _median(records: Sequence[Record], name: str) -> float:
    values = [record.score[name] for record in records if record.score.get(name) is not None]
    return float(np.median(values)) if values else math.nan


def _count(records: Sequence[Record]) -> str:
    diverged = sum(record.status == "diverged" for record in records)
    return f"{diverged} of {len(records)}" if diverged else "none"


def _steps(records: Sequence[Record]) -> str:
    return ", ".join(str(steps) for steps in sorted({record.steps for record in records})) or "-"


def _signed(value: float, digits: int = 2) -> str:
    return "-" if math.isnan(value) else f"{value:+.{digits}f}"


def _interval(interval: Interval) -> str:
    if interval.prompts == 0:
        return "-"
    return f"{interval.mean:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"
