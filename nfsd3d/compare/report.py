"""Tables of a comparison: means of each row, and paired differences with bootstrap intervals, as Markdown and JSON."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TypeAlias, TypedDict, cast

import numpy as np

from nfsd3d.compare.records import SCORE_NAMES, Record, Score
from nfsd3d.evaluate.statistics import Estimate, estimate_over_prompts
from nfsd3d.evaluate.tables import degrees, number, percent, table

Outcome: TypeAlias = Callable[[Record], float | None]


def margin(record: Record) -> float | None:
    """The truth's log-probability minus the best distractor's, in nats."""
    return record.score.get("margin")


def shape(record: Record) -> float | None:
    """Intersection over union with the true solid, minus the best ellipsoid's."""
    iou, ellipsoid = record.score.get("iou"), record.score.get("ellipsoid_iou")
    return None if iou is None or ellipsoid is None else iou - ellipsoid


PRIMARY: dict[str, Outcome] = {"margin": margin, "IoU over the ellipsoid's": shape}
"""The primary outcomes, by their headings: continuous, so that few prompts suffice to separate methods."""

_SHARES = ("object", "color", "pattern", "retrieved")


@dataclass(frozen=True)
class Group:
    """The records of one row of a tier: the ``full`` runs, and those ``at_equal`` NFE.

    Where the full runs are as cheap as SDS, both are the same.
    """

    full: Sequence[Record]
    at_equal: Sequence[Record]


class Difference(TypedDict):
    """A mean difference over ``prompts`` prompts and its bootstrap interval, for JSON."""

    mean: float
    low: float
    high: float
    prompts: int


class RowReport(Score, total=False):
    """One row of a tier for JSON: the means of its scores, and its differences to the row ``minus``."""

    n: int
    iou_over_ellipsoid: float
    diverged: int
    seconds: float
    evaluations: float
    at_equal_evaluations: dict[str, float]
    minus: str
    differences: dict[str, dict[str, Difference]]


def paired(ours: Sequence[Record], theirs: Sequence[Record], outcome: Outcome) -> Estimate:
    """The estimate of an outcome in ``ours`` minus that in ``theirs``, at the same prompt and seed.

    Differences are averaged over the seeds of a prompt first, and then over prompts, which are resampled.
    """
    others = {(record.prompt, record.seed): outcome(record) for record in theirs}

    def difference(record: Record) -> float | None:
        one, other = outcome(record), others.get((record.prompt, record.seed))
        return None if one is None or other is None else one - other

    return estimate_over_prompts(_means_over_seeds(ours, difference))


def mean_over_prompts(records: Sequence[Record], outcome: Outcome) -> float:
    """The mean over prompts of the mean over seeds; NaN without any."""
    means = _means_over_seeds(records, outcome)
    return sum(means) / len(means) if means else math.nan


def _means_over_seeds(records: Sequence[Record], outcome: Outcome) -> list[float]:
    """The mean of each prompt that has the outcome."""
    by_prompt: dict[str, list[float]] = {}
    for record in records:
        value = outcome(record)
        if value is not None:
            by_prompt.setdefault(record.prompt, []).append(float(value))
    return [sum(values) / len(values) for values in by_prompt.values()]


def means_table(groups: Mapping[str, Group], *, images: bool, equal: bool) -> str:
    """One row per method: means over its jobs, of ``images`` or scenes; ``equal`` adds columns at equal NFE."""
    head = ["", "n", "margin", *(["at equal evaluations"] if equal else [])]
    head += [] if images else ["IoU", "over ellipsoid", *(["at equal evaluations"] if equal else [])]
    head += ["object", "colour", "pattern", "R-Precision", *([] if images else ["view error", "Janus"])]
    head += ["diverged", "seconds", "evaluations", *(["steps", "at equal evaluations"] if equal else ["steps"])]

    def cells(name: str, group: Group) -> list[str]:
        records = group.full

        def mean(outcome: Outcome, of: Sequence[Record] = records) -> float:
            return mean_over_prompts(of, outcome)

        row = [name, str(len(records)), number(mean(margin), 2)]
        row += [number(mean(margin, group.at_equal), 2)] if equal else []
        if not images:
            row += [number(mean(_score("iou"))), _signed(mean(shape))]
            row += [_signed(mean(shape, group.at_equal))] if equal else []
        row += [percent(mean(_score(share))) for share in _SHARES]
        if not images:
            row += [degrees(_median(records, _score("view_error_deg"))), percent(mean(_score("janus")))]
        row += [_count(records), number(mean(_seconds), 0), number(mean(_evaluations), 0)]
        return [*row, _steps(records), *([_steps(group.at_equal)] if equal else [])]

    return table(head, [cells(name, group) for name, group in groups.items()])


def differences_table(groups: Mapping[str, Group], baseline: Mapping[str, str], *, images: bool, equal: bool) -> str:
    """Each row minus its baseline in the primary outcomes, with intervals; "" if nothing can be compared."""
    outcomes = {"margin": margin} if images else PRIMARY
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
        rows.append([name, other, str(max(estimate.count for estimate in found)), *map(_interval, found)])
    return table(head, rows) if rows else ""


def row_reports(groups: Mapping[str, Group], baseline: Mapping[str, str]) -> dict[str, RowReport]:
    """The same numbers for ``--json``: by row, the means and the differences to its baseline."""
    return {name: _row_report(name, groups, baseline) for name in groups}


def _row_report(name: str, groups: Mapping[str, Group], baseline: Mapping[str, str]) -> RowReport:
    group = groups[name]
    names = sorted(name for name in SCORE_NAMES if any(name in record.score for record in group.full))
    means = cast(Score, {name: mean_over_prompts(group.full, _score(name)) for name in names})
    row = RowReport(
        n=len(group.full),
        **means,
        iou_over_ellipsoid=mean_over_prompts(group.full, shape),
        diverged=sum(record.status == "diverged" for record in group.full),
        seconds=mean_over_prompts(group.full, _seconds),
        evaluations=mean_over_prompts(group.full, _evaluations),
        at_equal_evaluations={key: mean_over_prompts(group.at_equal, of) for key, of in PRIMARY.items()},
    )
    other = baseline.get(name)
    if other is not None and other in groups and other != name:
        row["minus"] = other
        row["differences"] = {
            key: {
                "full": _difference(paired(group.full, groups[other].full, outcome)),
                "at_equal_evaluations": _difference(paired(group.at_equal, groups[other].at_equal, outcome)),
            }
            for key, outcome in PRIMARY.items()
        }
    return row


def _difference(estimate: Estimate) -> Difference:
    return Difference(mean=estimate.mean, low=estimate.low, high=estimate.high, prompts=estimate.count)


def _score(name: str) -> Outcome:
    """A field of `Score` that is a number."""
    return lambda record: cast(float | None, record.score.get(name))


_seconds, _evaluations = attrgetter("seconds"), attrgetter("evaluations")


def _median(records: Sequence[Record], outcome: Outcome) -> float:
    values = [value for record in records if (value := outcome(record)) is not None]
    return float(np.median(values)) if values else math.nan


def _count(records: Sequence[Record]) -> str:
    diverged = sum(record.status == "diverged" for record in records)
    return f"{diverged} of {len(records)}" if diverged else "none"


def _steps(records: Sequence[Record]) -> str:
    return ", ".join(str(steps) for steps in sorted({record.steps for record in records})) or "-"


def _signed(value: float, digits: int = 2) -> str:
    return "-" if math.isnan(value) else f"{value:+.{digits}f}"


def _interval(estimate: Estimate) -> str:
    if estimate.count == 0:
        return "-"
    return f"{estimate.mean:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"
