"""``nfsd3d compare``: methods side by side on held-out prompts with common random numbers; resumes where it stopped."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfsd3d.cli.options import current_options, plain, whole_number, write_numbers
from nfsd3d.compare import workers
from nfsd3d.compare.cores import shares, usable_cores
from nfsd3d.compare.suite import Suite, load_suite
from nfsd3d.errors import InputError

if TYPE_CHECKING:
    from nfsd3d.compare.jobs import Trial
    from nfsd3d.compare.records import Record
    from nfsd3d.compare.report import Group

TIERS = Path(__file__).parents[2] / "scripts" / "suites"
OUTPUT = Path("outputs") / "compare"


@dataclass(frozen=True)
class State:
    """The ``trials`` of a tier, and the records of those that are ``done``, by key."""

    trials: list[Trial]
    done: dict[Any, Record]

    @property
    def missing(self) -> list[Trial]:
        """What is left to do."""
        return [trial for trial in self.trials if trial.key not in self.done]


def main(argv: Sequence[str]) -> int:
    """Does what is missing of a tier, prints its tables, and returns 0, or 1 if a job failed.

    Raises:
        InputError: no such tier, row or setting, or a file that cannot be written.
        nfsd3d.train.interrupts.Interrupted: SIGINT or SIGTERM; the same command goes on.
    """
    options = _parser().parse_args(current_options(argv))
    shares(usable_cores(), options.jobs or 1)
    suite = _selected(load_suite(tier_file(options.tier), "--tier"), options)
    if suite.edits:
        raise InputError(f"--tier {options.tier}: a suite of edits; nfsd3d evaluate --suite FILE measures it")
    name = Path(options.tier).stem
    from nfsd3d.compare.jobs import trials_of
    from nfsd3d.compare.records import append, read

    results = options.results or options.output / "results.jsonl"
    trials = trials_of(suite, name, oracle_fit=options.oracle_fit or suite.oracle_fit)
    records, unreadable = read(results)
    state = _state(trials, records)
    print(f"{name}: {len(trials)} jobs, {len(trials) - len(state.missing)} done, {len(state.missing)} to do")
    other = _of_other_weights(trials, records)
    if other:
        print(f"{other} results in {results} are of other weights of the prior or the classifier, and do not count")
    if unreadable:
        print(f"{unreadable} lines of {results} are no results of this version, and do not count")
    jobs = options.jobs or _default_jobs(trials)
    if options.dry_run:
        _print_plan(state, records, jobs)
        return 0
    failures: list[str] = []
    if state.missing and not options.report:
        with _bar(name, state) as advance:

            def report(trial: Trial, result: Record | str) -> None:
                if isinstance(result, str):
                    failures.append(f"{trial.name}: {result}")
                else:
                    append(results, result)
                advance(trial)

            workers.run_trials(state.missing, options.output, results.parent, report, jobs=jobs, keep=options.keep_runs)
        for folder in (options.output / "runs").glob("*"):
            with suppress(OSError):  # there are runs in it
                folder.rmdir()
        state = _state(trials, read(results)[0])
    numbers = _report(suite, name, state, options, results)
    for failure in failures:
        print(f"failed: {failure}")
    if failures:
        print(f"{len(failures)} jobs failed; see {options.output}/worker-*.log, and give the command again")
    write_numbers(options.json, plain(numbers))
    return int(bool(failures))


def tier_file(tier: str) -> Path:
    """The file of a tier: its own, or that of a name.

    Raises:
        InputError: there is none.
    """
    if Path(tier).suffix == ".yaml":
        return Path(tier)
    path = TIERS / f"tier-{tier}.yaml"
    if not path.exists():
        names = tier_names()
        known = f"choose one of {', '.join(names)}, or a" if names else "the tiers come with the source tree; give a"
        raise InputError(f"--tier {tier}: no such tier; {known} YAML file")
    return path


def tier_names() -> list[str]:
    """The tiers that have names: files of the source tree."""
    return sorted(found.stem.removeprefix("tier-") for found in TIERS.glob("tier-*.yaml"))


def _selected(suite: Suite, options: argparse.Namespace) -> Suite:
    """The suite with the rows, and as many prompts, as the options ask for."""
    unknown = sorted(set(options.row or ()) - suite.rows.keys())
    if unknown:
        raise InputError(f"--row {unknown[0]}: no such row; there are {', '.join(suite.rows)}")
    rows = {name: row for name, row in suite.rows.items() if not options.row or name in options.row}
    return replace(suite, rows=rows, prompts=suite.prompts[: options.prompts])


def _default_jobs(trials: Sequence[Trial]) -> int:
    return len(usable_cores()) if all(trial.config.machine.device == "cpu" for trial in trials) else 1


def _state(trials: list[Trial], records: Sequence[Record]) -> State:
    by_key = {record.key: record for record in records}
    return State(trials, {trial.key: by_key[trial.key] for trial in trials if trial.key in by_key})


def _of_other_weights(trials: Sequence[Trial], records: Sequence[Record]) -> int:
    def apart(key: tuple[Any, ...]) -> tuple[Any, ...]:
        return key[:2] + key[4:]

    wanted, same = {apart(trial.key) for trial in trials}, {trial.key for trial in trials}
    return sum(record.key not in same and apart(record.key) in wanted for record in records)


def _report(suite: Suite, name: str, state: State, options: argparse.Namespace, results: Path) -> dict[str, Any]:
    from nfsd3d.compare.report import differences_table, means_table, plain_rows

    groups = _groups(state)
    flat = all(trial.config.makes_images for trial in state.trials)
    equal = suite.equal_evaluations
    if not state.done:
        print("nothing is done yet")
        return {"tier": name, "jobs": len(state.trials), "done": 0, "rows": {}}
    print(f"\n{len(state.done)} of {len(state.trials)} jobs done\n")
    print(means_table(groups, flat=flat, equal=equal))
    differences = differences_table(groups, suite.baseline, flat=flat, equal=equal)
    if differences:
        print(f"\n{differences}")
    _write_sheet(options.sheet or options.output / f"{name}.jpg", suite, state, results.parent)
    rows = plain_rows(groups, suite.baseline)
    return {"tier": name, "jobs": len(state.trials), "done": len(state.done), "rows": rows}


def _groups(state: State) -> dict[str, Group]:
    from nfsd3d.compare.report import Group

    rows = dict.fromkeys(trial.row for trial in sorted(state.trials, key=lambda trial: trial.kind != "run"))
    groups = {}
    for row in rows:
        trials = [trial for trial in state.trials if trial.row == row]
        full = [state.done[trial.key] for trial in trials if not trial.equal and trial.key in state.done]
        at_equal = [state.done[trial.key] for trial in trials if trial.equal and trial.key in state.done]
        if not any(trial.equal or trial.kind != "run" for trial in trials):  # as cheap as SDS
            at_equal = full
        if full or at_equal:
            groups[row] = Group(full, at_equal)
    return groups


def _write_sheet(path: Path, suite: Suite, state: State, folder: Path) -> None:
    from nfsd3d.compare.contact_sheet import write_sheet

    columns: dict[str, dict[str, Path]] = {}
    for trial in sorted(state.trials, key=lambda trial: trial.kind != "run"):
        record = state.done.get(trial.key)
        if record is not None and record.image is not None and trial.seed == suite.seeds[0] and not trial.equal:
            columns.setdefault(trial.row, {})[trial.prompt] = folder / record.image
    if columns:
        write_sheet(path, suite.prompts, columns)
        print(f"\n{path}")


def _print_plan(state: State, records: Sequence[Record], jobs: int) -> None:
    """Every kind of job with how many are done, and how long the rest will take where something like it was timed."""
    total, unknown = 0.0, 0
    pace = _pace(state, records)
    for row, equal in dict.fromkeys((trial.row, trial.equal) for trial in state.trials):
        trials = [trial for trial in state.trials if (trial.row, trial.equal) == (row, equal)]
        missing = [trial for trial in trials if trial.key not in state.done]
        seconds = [pace(trial) for trial in trials]
        known = [value for value in seconds if value is not None]
        each = f"{sum(known) / len(known):.0f} s each" if known else "not timed yet"
        steps = f"{trials[0].config.train.steps} steps, " if trials[0].kind == "run" else ""
        label = f"{row}, at equal evaluations" if equal else row
        print(f"  {label}: {len(trials) - len(missing)} of {len(trials)} done; {steps}{each}")
        total += sum(value for value in map(pace, missing) if value is not None)
        unknown += sum(pace(trial) is None for trial in missing)
    more = f", and {unknown} jobs that were not timed yet" if unknown else ""
    print(f"about {total / jobs / 60:.0f} minutes with --jobs {jobs}{more}")


def _pace(state: State, records: Sequence[Record]) -> Callable[[Trial], float | None]:
    """Seconds that a job will take: those of the same recipe, with any weights, or else of its row for each step."""
    by_recipe: dict[str, list[float]] = {}
    by_row: dict[str, list[float]] = {}
    for record in records:
        by_recipe.setdefault(record.recipe, []).append(record.seconds)
    recipes = {trial.row: trial.recipe for trial in state.trials if not trial.equal}
    for record in records:
        for row, recipe in recipes.items():
            if record.recipe == recipe:
                by_row.setdefault(row, []).append(record.seconds / record.steps)

    def seconds(trial: Trial) -> float | None:
        if trial.recipe in by_recipe:
            return sum(by_recipe[trial.recipe]) / len(by_recipe[trial.recipe])
        if trial.row in by_row:
            return sum(by_row[trial.row]) / len(by_row[trial.row]) * trial.config.train.steps
        return None

    return seconds


@contextmanager
def _bar(name: str, state: State) -> Iterator[Callable[[Trial], None]]:
    """A progress bar in units of work, because jobs differ; yields a function that hears of each job that ended."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn(name), BarColumn(), TextColumn("{task.fields[jobs]}"), TimeElapsedColumn())
    missing = state.missing
    ended = len(state.trials) - len(missing)
    # A window as long as the whole: jobs end one by one, minutes apart.
    with Progress(*columns, TimeRemainingColumn(), speed_estimate_period=1e6) as progress:
        task = progress.add_task(
            name, total=sum(trial.work for trial in missing), jobs=f"{ended}/{len(state.trials)} jobs"
        )

        def advance(trial: Trial) -> None:
            nonlocal ended
            ended += 1
            progress.update(task, advance=trial.work, jobs=f"{ended}/{len(state.trials)} jobs")

        yield advance


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nfsd3d compare",
        description="Compare distillation methods on held-out prompts with common random numbers (cameras, timesteps, "
        "noise, initialisation), judged against ground truth. What is done stands in a file of results, and is not "
        "done again; the tables come at the end of every call.",
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
