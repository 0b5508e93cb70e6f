"""``nfsd3d compare``: compares methods on held-out prompts with common random numbers; rerun to resume."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nfsd3d.cli.engine_options import add_engine_options, chosen_engine
from nfsd3d.cli.main import run_command
from nfsd3d.cli.options import Parser, current_options, plain, whole_number, write_numbers, writing_to
from nfsd3d.compare.suite import Suite, load_suite, tier_file, tier_names
from nfsd3d.errors import InputError
from nfsd3d.jobs.controller import check_engine, line_of, run
from nfsd3d.jobs.cores import usable_cores
from nfsd3d.jobs.engines.base import EngineSettings
from nfsd3d.jobs.manifest import Job, rewrite
from nfsd3d.jobs.state import JobState, states
from nfsd3d.runs.lock import owned

if TYPE_CHECKING:
    from nfsd3d.compare.jobs import PlannedJob
    from nfsd3d.compare.status import Status

OUTPUT = Path("outputs") / "compare"


def main(argv: Sequence[str]) -> int:
    """Runs the missing jobs of a tier, prints its tables, and returns 0, or 1 if a job failed.

    Raises:
        InputError: no such tier, row or setting, or a file that cannot be written.
        nfsd3d.train.interrupts.Interrupted: a signal ended it; rerun to resume.
    """
    options = parser().parse_args(current_options(argv))
    if options.job:
        return _run_job(*options.job)
    check_engine(engine := chosen_engine(options, EngineSettings()))
    if engine.processes > 1:
        raise InputError(f"--gpus {engine.gpus:g}: a job of a comparison has one process; give at most one")
    suite = load_suite(tier_file(options.tier), "--tier").selected(options.row, options.prompts)
    if suite.edits:
        raise InputError(f"--tier {options.tier}: a suite of edits; nfsd3d evaluate --suite FILE measures it")
    name = Path(options.tier).stem
    from nfsd3d.compare.jobs import plan_jobs
    from nfsd3d.compare.records import read
    from nfsd3d.compare.status import Status, of_other_weights

    results = options.results or options.output / "results.jsonl"
    jobs = plan_jobs(suite, name, engine, oracle_fit=options.oracle_fit or suite.oracle_fit)
    records, unreadable = read(results)
    status = Status.of(jobs, records)
    print(f"{name}: {len(jobs)} jobs, {len(status.done)} done, {len(status.missing)} to do")
    other = of_other_weights(jobs, records)
    if other:
        print(f"{other} results in {results} are of other weights of the prior or the classifier, and do not count")
    if unreadable:
        print(f"{unreadable} lines of {results} are no results of this version, and do not count")
    if options.workers is None:
        engine = replace(engine, workers=_default_workers(jobs))
    if options.dry_run:
        print(status.plan(records, engine.workers))
        return 0
    left: list[str] = []
    if status.missing and not options.report:
        status, left = _run_missing(status, options, engine, results)
    numbers = _report(suite, name, status, options, results)
    for line in left:
        print(line)
    if left:
        print(f"not done: {len(left)} of {len(status.jobs)} jobs; give the same command again")
    write_numbers(options.json, numbers)
    return int(bool(left))


def _run_job(text: str, run_dir: str) -> int:
    """Runs one job, as the manifest has it, in its directory."""
    from nfsd3d.compare.jobs import PlannedJob
    from nfsd3d.compare.run_job import run_job

    run_job(PlannedJob.from_json(text), Path(run_dir))
    return 0


def _default_workers(jobs: Sequence[PlannedJob]) -> int:
    return len(usable_cores()) if all(job.config.machine.device == "cpu" for job in jobs) else 1


def _run_missing(
    status: Status, options: argparse.Namespace, engine: EngineSettings, results: Path
) -> tuple[Status, list[str]]:
    """Runs the missing jobs and appends their records; returns the new status, and a line on each job still missing."""
    from nfsd3d.compare.collect import collect
    from nfsd3d.compare.jobs import manifest_of
    from nfsd3d.compare.records import of_job, read
    from nfsd3d.compare.status import Status

    output, keep = options.output, options.keep_runs
    with writing_to(output):
        output.mkdir(parents=True, exist_ok=True)
    with owned(output):
        for job in status.missing:  # an earlier call was killed before it could do so
            collect(job, output / job.directory, results, keep=keep)
        status = Status.of(status.jobs, read(results)[0])
        jobs = [job for job in status.jobs if job.key not in status.done or of_job(output / job.directory) is not None]
        manifest = manifest_of(jobs, output)
        rewrite(manifest)

        def on_end(job: Job, _: JobState) -> None:
            collect(jobs[job.number], manifest.run_dir(job), results, keep=keep)

        run(manifest, engine, run_command, on_end)
    status = Status.of(status.jobs, read(results)[0])
    ended = zip(jobs, states(manifest), strict=True)
    left = [line_of(manifest, job, state) for planned, (job, state) in ended if planned.key not in status.done]
    return status, left


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


def parser() -> argparse.ArgumentParser:
    """The options of ``nfsd3d compare``."""
    parser = Parser(
        prog="nfsd3d compare",
        description="Compare distillation methods on held-out prompts with common random numbers (cameras, timesteps, "
        "noise, initialisation), scored against ground truth. Finished jobs are read from a file of results and not "
        "repeated; every call ends with the tables.",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--tier", metavar="NAME|FILE", help=", ".join([*tier_names(), "or a YAML file"]))
    which.add_argument("--job", nargs=2, help=argparse.SUPPRESS)  # what an engine's workers run
    which.add_argument("--tune", dest="tier", action="store_const", const="tuning", help="the tier tuning")
    parser.add_argument("--output", type=Path, metavar="DIR", default=OUTPUT, help=f"for all files (default: {OUTPUT})")
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="of results, with images/ (default: DIR/results.jsonl)"
    )
    parser.add_argument("--row", action="append", metavar="NAME", help="only this row of the tier; may be repeated")
    parser.add_argument("--prompts", type=whole_number(1), metavar="N", help="only the first N prompts of the tier")
    parser.add_argument(
        "--oracle-fit", action="store_true", help="fit the same NeRF to true views too, of every prompt"
    )
    parser.add_argument("--report", action="store_true", help="run nothing; only the tables and the contact sheet")
    parser.add_argument("--dry-run", action="store_true", help="list what is done, and how long the rest takes")
    parser.add_argument("--keep-runs", action="store_true", help="keep the files of runs in DIR/runs")
    parser.add_argument("--sheet", type=Path, metavar="JPG", help="the contact sheet (default: DIR/NAME.jpg)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the numbers as JSON")
    add_engine_options(parser, "cores; 1 on a GPU")
    return parser
