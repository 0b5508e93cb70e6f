"""``nfsd3d compare``: compares methods on held-out prompts with common random numbers; rerun to resume."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nfsd3d.cli.options import Parser, current_options, plain, whole_number, write_numbers
from nfsd3d.compare import workers
from nfsd3d.compare.suite import Suite, load_suite, tier_file, tier_names
from nfsd3d.errors import InputError
from nfsd3d.jobs.cores import shares, usable_cores

if TYPE_CHECKING:
    from nfsd3d.compare.jobs import PlannedJob
    from nfsd3d.compare.records import Record
    from nfsd3d.compare.status import Status

OUTPUT = Path("outputs") / "compare"


def main(argv: Sequence[str]) -> int:
    """Runs the missing jobs of a tier, prints its tables, and returns 0, or 1 if a job failed.

    Raises:
        InputError: no such tier, row or setting, or a file that cannot be written.
        nfsd3d.train.interrupts.Interrupted: a signal ended it; rerun to resume.
    """
    options = _parser().parse_args(current_options(argv))
    shares(usable_cores(), options.jobs or 1)
    suite = load_suite(tier_file(options.tier), "--tier").selected(options.row, options.prompts)
    if suite.edits:
        raise InputError(f"--tier {options.tier}: a suite of edits; nfsd3d evaluate --suite FILE measures it")
    name = Path(options.tier).stem
    from nfsd3d.compare.jobs import plan_jobs
    from nfsd3d.compare.records import read
    from nfsd3d.compare.status import Status, of_other_weights

    results = options.results or options.output / "results.jsonl"
    jobs = plan_jobs(suite, name, oracle_fit=options.oracle_fit or suite.oracle_fit)
    records, unreadable = read(results)
    status = Status.of(jobs, records)
    print(f"{name}: {len(jobs)} jobs, {len(status.done)} done, {len(status.missing)} to do")
    other = of_other_weights(jobs, records)
    if other:
        print(f"{other} results in {results} are of other weights of the prior or the classifier, and do not count")
    if unreadable:
        print(f"{unreadable} lines of {results} are no results of this version, and do not count")
    count = options.jobs or _default_workers(jobs)
    if options.dry_run:
        print(status.plan(records, count))
        return 0
    failures: list[str] = []
    if status.missing and not options.report:
        failures = _run_missing(name, status, options, results, count)
        status = Status.of(jobs, read(results)[0])
    numbers = _report(suite, name, status, options, results)
    for failure in failures:
        print(f"failed: {failure}")
    if failures:
        print(f"{len(failures)} jobs failed; see {options.output}/worker-*.log, and give the command again")
    write_numbers(options.json, numbers)
    return int(bool(failures))


def _default_workers(jobs: Sequence[PlannedJob]) -> int:
    return len(usable_cores()) if all(job.config.machine.device == "cpu" for job in jobs) else 1


def _run_missing(name: str, status: Status, options: argparse.Namespace, results: Path, count: int) -> list[str]:
    """Runs the missing jobs on ``count`` workers and appends their records; returns the failures."""
    from nfsd3d.compare.records import append

    failures: list[str] = []
    with _bar(name, status) as advance:

        def on_result(job: PlannedJob, result: Record | str) -> None:
            if isinstance(result, str):
                failures.append(f"{job.name}: {result}")
            else:
                append(results, result)
            advance(job)

        workers.run_jobs(
            status.missing, options.output, results.parent, on_result, workers=count, keep=options.keep_runs
        )
    for folder in (options.output / "runs").glob("*"):
        with suppress(OSError):  # kept runs
            folder.rmdir()
    return failures


def _report(suite: Suite, name: str, status: Status, options: argparse.Namespace, results: Path) -> dict[str, object]:
    """Prints the tables and writes the contact sheet; returns the numbers for ``--json``."""
    from nfsd3d.compare.contact_sheet import write_sheet
    from nfsd3d.compare.report import differences_table, means_table, row_reports

    counts = {"tier": name, "jobs": len(status.jobs), "done": len(status.done)}
    if not status.done:
        print("nothing is done yet")
        return {**counts, "rows": {}}
    groups = status.groups()
    images, equal = all(job.config.makes_images for job in status.jobs), suite.equal_evaluations
    print(f"\n{len(status.done)} of {len(status.jobs)} jobs done\n")
    print(means_table(groups, images=images, equal=equal))
    differences = differences_table(groups, suite.baseline, images=images, equal=equal)
    if differences:
        print(f"\n{differences}")
    thumbnails = status.thumbnails(suite.seeds[0], results.parent)
    if thumbnails:
        path = options.sheet or options.output / f"{name}.jpg"
        write_sheet(path, suite.prompts, thumbnails)
        print(f"\n{path}")
    return {**counts, "rows": plain(row_reports(groups, suite.baseline))}


@contextmanager
def _bar(name: str, status: Status) -> Iterator[Callable[[PlannedJob], None]]:
    """A progress bar in units of work, because jobs differ; yields a callback for each job that ended."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn(name), BarColumn(), TextColumn("{task.fields[jobs]}"), TimeElapsedColumn())
    missing = status.missing
    ended = len(status.jobs) - len(missing)
    # The speed is estimated over the whole run: jobs end minutes apart.
    with Progress(*columns, TimeRemainingColumn(), speed_estimate_period=1e6) as progress:
        task = progress.add_task(name, total=sum(job.work for job in missing), jobs=f"{ended}/{len(status.jobs)} jobs")

        def advance(job: PlannedJob) -> None:
            nonlocal ended
            ended += 1
            progress.update(task, advance=job.work, jobs=f"{ended}/{len(status.jobs)} jobs")

        yield advance


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="nfsd3d compare",
        description="Compare distillation methods on held-out prompts with common random numbers (cameras, timesteps, "
        "noise, initialisation), scored against ground truth. Finished jobs are read from a file of results and not "
        "repeated; every call ends with the tables.",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--tier", metavar="NAME|FILE", help=", ".join([*tier_names(), "or a YAML file"]))
    which.add_argument("--tune", dest="tier", action="store_const", const="tuning", help="the tier tuning")
    parser.add_argument("--output", type=Path, metavar="DIR", default=OUTPUT, help=f"for all files (default: {OUTPUT})")
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="of results, with images/ (default: DIR/results.jsonl)"
    )
    parser.add_argument("--jobs", type=whole_number(1), metavar="N", help="at a time (default: cores; 1 on a GPU)")
    parser.add_argument("--row", action="append", metavar="NAME", help="only this row of the tier; may be repeated")
    parser.add_argument("--prompts", type=whole_number(1), metavar="N", help="only the first N prompts of the tier")
    parser.add_argument(
        "--oracle-fit", action="store_true", help="fit the same NeRF to true views too, of every prompt"
    )
    parser.add_argument("--report", action="store_true", help="run nothing; only the tables and the contact sheet")
    parser.add_argument("--dry-run", action="store_true", help="list what is done, and how long the rest takes")
    parser.add_argument("--keep-runs", action="store_true", help="keep the run directories in DIR/runs")
    parser.add_argument("--sheet", type=Path, metavar="JPG", help="the contact sheet (default: DIR/NAME.jpg)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the numbers as JSON")
    return parser
