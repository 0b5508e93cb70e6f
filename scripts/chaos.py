"""Fault injection: runs and sweeps that are killed, starved or started twice must resume to the bit-identical result.

    python scripts/chaos.py [--cases 200] [--seed 0] [--kinds kill,signal,...] [--workers 2] [--results FILE.jsonl]

Every case starts the real command in a process of its own, does one harm to it at a random moment, removes the cause,
resumes the run as the printed command says until it is done, and compares tensors, metrics and files with a run that
nothing happened to. Finished cases are kept in ``--results``; the same command goes on after them. Prints a Markdown
table of cases, survivors, lost steps and unwanted output; exits with 1 if a case failed.
"""

import argparse
import json
import random
import re
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.progress import track

from fault_injection.comparison import differences
from fault_injection.harms import KINDS, Case, can_mount
from fault_injection.process import EVERY, SETUPS, Process, checkpoint_of, steps_of
from fault_injection.sweep_harms import SWEEP_KINDS, arguments, run_sweep_case

SWEEP = "sweep"
"""The setup of a sweep's cases."""


@dataclass
class Outcome:
    """One case: ``lost`` are the steps repeated after it, ``problems`` what a user would not have wanted."""

    case: int
    kind: str
    setup: str
    moment: str
    lost: int
    problems: list[str]


def finish(case: Case) -> int:
    """Resumes, or starts anew where nothing was saved, until the run is done; returns the steps that were repeated."""
    lost = 0
    for _ in range(4):
        summary = case.run_dir / "summary.json"
        with suppress(OSError, ValueError):
            if json.loads(summary.read_text())["status"] == "done":
                return lost
        had = steps_of(case.run_dir)
        if checkpoint_of(case.run_dir):
            process = Process("--resume", str(case.run_dir))
        else:
            shutil.rmtree(case.run_dir, ignore_errors=True)
            process = case.start()
        code, output = process.end()
        case.expect(code, output, {0, 2})
        case.lines_lost |= "metrics.jsonl" in output  # the resumed run says that lines cannot be read
        if code == 2 and "no intact checkpoint" in output:  # the only one was damaged
            shutil.rmtree(case.run_dir)
            continue
        if found := re.search(r"resumed after step (\d+)", output):
            lost = max(lost, had - int(found[1]))
    case.problems.append("not done after four attempts")
    return lost


def run_case(number: int, kind: str, setup: str, seed: int, reference: Path, seconds: float) -> Outcome:
    """One case from its harm to the finished run or sweep."""
    if kind in SWEEP_KINDS:
        with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
            rng = random.Random(f"{seed} {number}")
            moment, lost, problems = run_sweep_case(kind, Path(folder), reference, seconds, rng)
        return Outcome(number, kind, setup, moment, lost, problems)
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        case = Case(Path(folder) / "run", SETUPS[setup], seconds, random.Random(f"{seed} {number}"), [])
        moment = KINDS[kind](case)
        lost = finish(case)
        case.problems += differences(case.run_dir, reference, incomplete=case.lines_lost)
    if lost > EVERY and kind != "damaged file":
        case.problems.append(f"{lost} steps lost")
    return Outcome(number, kind, setup, moment, lost, case.problems)


def references(setups: list[str], folder: Path) -> dict[str, tuple[Path, float]]:
    """A run of every setup that nothing happens to, and its seconds."""
    found = {}
    for number, setup in enumerate(track(setups, description="references", transient=True)):
        started = time.monotonic()
        run_dir = folder / str(number)
        command = arguments() if setup == SWEEP else SETUPS[setup]
        code, output = Process(*command, f"run_dir={run_dir}").end()
        if code:
            raise SystemExit(f"{setup}: {output}")
        found[setup] = run_dir, time.monotonic() - started
    return found


def table(outcomes: list[Outcome]) -> str:
    """The outcomes by kind, as Markdown."""

    def row(name: str, of: list[Outcome]) -> str:
        good, most_lost = sum(not outcome.problems for outcome in of), max((outcome.lost for outcome in of), default=0)
        return f"| {name} | {len(of)} | {good} | {most_lost} | {len(of) - good} |"

    by_kind: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_kind.setdefault(outcome.kind, []).append(outcome)
    rows = [row(kind, these) for kind, these in by_kind.items()]
    head = ["| harm | cases | same result | most steps repeated | problems |", "|---|--:|--:|--:|--:|"]
    return "\n".join([*head, *rows, row("all", outcomes)])


def main() -> int:
    """Runs the cases that are not in the results yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join([*KINDS, *SWEEP_KINDS]))
    parser.add_argument("--setups", default=";".join(SETUPS), help="names, separated by semicolons")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    kinds, setups = options.kinds.split(","), options.setups.split(";")
    if not can_mount():
        print("full disk: needs the right to mount file systems; left out", file=sys.stderr)
        kinds = [kind for kind in kinds if not kind.endswith("full disk")]
    outcomes: list[Outcome] = []
    if options.results is not None and options.results.exists():
        outcomes = [Outcome(**json.loads(line)) for line in options.results.read_text().splitlines()]
    done = {outcome.case for outcome in outcomes}
    todo = [number for number in range(options.cases) if number not in done]
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder, ThreadPoolExecutor(options.workers) as pool:
        needed = setups if {*kinds} & {*KINDS} else []
        needed = [*needed, SWEEP] if {*kinds} & {*SWEEP_KINDS} else needed
        known = references(needed, Path(folder)) if todo else {}

        def perform(number: int) -> Outcome:
            kind = kinds[number % len(kinds)]
            setup = SWEEP if kind in SWEEP_KINDS else setups[number // len(kinds) % len(setups)]
            return run_case(number, kind, setup, options.seed, *known[setup])

        for outcome in pool.map(perform, todo):
            outcomes.append(outcome)
            print(f"{outcome.case}: {outcome.kind}, {outcome.setup}, {outcome.moment}: {outcome.problems or 'same'}")
            sys.stdout.flush()
            if options.results is not None:
                with options.results.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(asdict(outcome)) + "\n")
    print(table(outcomes))
    return int(any(outcome.problems for outcome in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
