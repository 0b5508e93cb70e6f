"""The status of a comparison: planned jobs, their records, and an estimate of the remaining time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nfsd3d.compare.records import JobKey, Record
from nfsd3d.compare.report import Group

if TYPE_CHECKING:
    from nfsd3d.compare.jobs import PlannedJob


@dataclass(frozen=True)
class Status:
    """The ``jobs`` of a tier, and the records of those that are ``done``, by key."""

    jobs: list[PlannedJob]
    done: dict[JobKey, Record]

    @classmethod
    def of(cls, jobs: list[PlannedJob], records: Sequence[Record]) -> Status:
        """Newer records replace older ones of the same key."""
        by_key = {record.key: record for record in records}
        return cls(jobs, {job.key: by_key[job.key] for job in jobs if job.key in by_key})

    @property
    def missing(self) -> list[PlannedJob]:
        """The jobs without a record."""
        return [job for job in self.jobs if job.key not in self.done]

    def groups(self) -> dict[str, Group]:
        """The records by row, samples and oracle fit last."""
        groups = {}
        for row in dict.fromkeys(job.row for job in _runs_first(self.jobs)):
            jobs = [job for job in self.jobs if job.row == row]
            full = [self.done[job.key] for job in jobs if not job.equal and job.key in self.done]
            at_equal = [self.done[job.key] for job in jobs if job.equal and job.key in self.done]
            if not any(job.equal or job.kind != "run" for job in jobs):  # as cheap as SDS
                at_equal = full
            if full or at_equal:
                groups[row] = Group(full, at_equal)
        return groups

    def thumbnails(self, seed: int, folder: Path) -> dict[str, dict[str, Path]]:
        """The thumbnails of the full runs with ``seed``, by row and prompt; ``folder`` is that of the records."""
        columns: dict[str, dict[str, Path]] = {}
        for job in _runs_first(self.jobs):
            record = self.done.get(job.key)
            if record is not None and record.image is not None and job.seed == seed and not job.equal:
                columns.setdefault(job.row, {})[job.prompt] = folder / record.image
        return columns

    def plan(self, records: Sequence[Record], workers: int) -> str:
        """A line for each kind of job, with how many are done, and the estimated time of the others."""
        lines, total, untimed = [], 0.0, 0
        seconds = _seconds_per_job(self, records)
        for row, equal in dict.fromkeys((job.row, job.equal) for job in self.jobs):
            jobs = [job for job in self.jobs if (job.row, job.equal) == (row, equal)]
            missing = [job for job in jobs if job.key not in self.done]
            known = [value for job in jobs if (value := seconds(job)) is not None]
            each = f"{sum(known) / len(known):.0f} s each" if known else "not timed yet"
            steps = f"{jobs[0].config.train.steps} steps, " if jobs[0].kind == "run" else ""
            lines.append(f"  {jobs[0].label}: {len(jobs) - len(missing)} of {len(jobs)} done; {steps}{each}")
            total += sum(value for job in missing if (value := seconds(job)) is not None)
            untimed += sum(seconds(job) is None for job in missing)
        more = f", and {untimed} jobs that were not timed yet" if untimed else ""
        return "\n".join([*lines, f"about {total / workers / 60:.0f} minutes with --workers {workers}{more}"])


def of_other_weights(jobs: Sequence[PlannedJob], records: Sequence[Record]) -> int:
    """The number of records that match one of ``jobs`` except for the weights of prior or classifier."""

    def without_weights(key: JobKey) -> tuple[str, str, str, int]:
        kind, recipe, _, _, prompt, seed = key
        return kind, recipe, prompt, seed

    wanted, same = {without_weights(job.key) for job in jobs}, {job.key for job in jobs}
    return sum(record.key not in same and without_weights(record.key) in wanted for record in records)


def _runs_first(jobs: Sequence[PlannedJob]) -> list[PlannedJob]:
    return sorted(jobs, key=lambda job: job.kind != "run")


def _seconds_per_job(status: Status, records: Sequence[Record]) -> Callable[[PlannedJob], float | None]:
    """A function from a job to its estimated seconds: those of its recipe, or of its row for each step, or None."""
    by_recipe: dict[str, list[float]] = {}
    by_row: dict[str, list[float]] = {}
    recipes = {job.row: job.recipe for job in status.jobs if not job.equal}
    for record in records:
        by_recipe.setdefault(record.recipe, []).append(record.seconds)
        for row, recipe in recipes.items():
            if record.recipe == recipe:
                by_row.setdefault(row, []).append(record.seconds / record.steps)

    def seconds(job: PlannedJob) -> float | None:
        if job.recipe in by_recipe:
            return sum(by_recipe[job.recipe]) / len(by_recipe[job.recipe])
        if job.row in by_row:
            return sum(by_row[job.row]) / len(by_row[job.row]) * job.config.train.steps
        return None

    return seconds
