"""The harms that are done to a sweep of three runs on two workers, each at a random moment."""

import json
import random
import re
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from os import kill
from pathlib import Path

from fault_injection.comparison import differences
from fault_injection.harms import mounted
from fault_injection.process import SETUPS, STEPS, Process, steps_of

SEEDS = "0,1,2"
DISK = 64_000
"""Kilobytes of the file system that is filled."""


@dataclass
class SweepCase:
    """A sweep's directory, its usual duration, random numbers, and what a user would not have wanted."""

    folder: Path
    seconds: float
    rng: random.Random
    problems: list[str] = field(default_factory=list)
    reached: dict[str, int] = field(default_factory=dict)
    """The steps that each job had at the moment of the harm."""

    def start(self) -> Process:
        """Starts the sweep, or goes on with it."""
        return Process(*arguments(), f"run_dir={self.folder}")

    def go_on(self) -> Process:
        """Goes on with the sweep by either of the two commands."""
        if self.rng.random() < 0.5 and (self.folder / "manifest.jsonl").exists():
            return Process("sweep", "resume", str(self.folder))
        return self.start()

    def jobs(self) -> list[Path]:
        """The directories of the jobs that have begun."""
        return sorted(path.parent for path in self.folder.glob("*/job.json"))

    def wait(self, process: Process) -> str:
        """Waits for a random moment: any while there are jobs, or after so many steps of all jobs; names it."""
        process.when(lambda: bool(self.jobs()))
        if self.rng.random() < 0.3:
            wait = self.rng.uniform(0, self.seconds)
            process.when(lambda: False, wait)
            moment = f"{wait / self.seconds:.0%} of the time"
        else:
            steps = self.rng.randrange(1, len(SEEDS.split(",")) * STEPS)
            process.when(lambda: sum(map(steps_of, self.jobs())) >= steps)
            moment = f"step {steps} of all jobs"
        self.reached = {job.name: steps_of(job) for job in self.jobs()}
        return moment

    def expect(self, process: Process, wanted: set[int], words: str = "") -> int:
        """Notes an exit code or output of a process that is not wanted; returns the code."""
        code, output = process.end()
        if code not in wanted:
            self.problems.append(f"exit code {code}, not {sorted(wanted)}: {output[-300:]}")
        if "Traceback" in output:
            self.problems.append(f"traceback: {output[output.index('Traceback') :][-500:]}")
        if code in wanted and code != 0 and not re.search(words, output):
            self.problems.append(f"output without {words!r}: {output[-300:]}")
        return code


def arguments() -> list[str]:
    """The command line of the sweep, without its directory."""
    workers = ("hydra.launcher.workers=2", "hydra.launcher.threads=1")
    return ["-m", *SETUPS["NFSD, latents"], f"seed={SEEDS}", *workers]


def kill_worker(case: SweepCase) -> str:
    """SIGKILL to a process that runs jobs; the controller starts the job again."""
    process = case.start()
    moment = case.wait(process)
    running = [job for job in case.jobs() if (job / ".lock").exists()]
    pids = [json.loads((job / "job.json").read_text())["pid"] for job in running or case.jobs()]
    with suppress(ProcessLookupError):
        if process.poll() is None:
            kill(case.rng.choice(pids), signal.SIGKILL)
    case.expect(process, {0})
    return moment


def kill_controller(case: SweepCase) -> str:
    """SIGKILL to the controller; it is started again at once, while its former workers save their runs."""
    process = case.start()
    moment = case.wait(process)
    process.kill()
    process.end()
    case.expect(case.go_on(), {0})
    return moment


def start_twice(case: SweepCase) -> str:
    """A second controller of the same sweep; it is refused while the first one lives."""
    process = case.start()
    moment = "at once"
    if case.rng.random() < 0.7:
        moment = case.wait(process)
    case.expect(case.go_on(), {0, 2}, "in use by|already used")
    case.expect(process, {0, 2} if moment == "at once" else {0}, "in use by|already used")
    return moment


def fill_disk(case: SweepCase) -> str:
    """The file system is full for a second, some seconds, or a minute; jobs may fail meanwhile."""
    process = case.start()
    moment = case.wait(process)
    filler = case.folder.parent / "filler"
    with filler.open("wb", buffering=0) as stream:
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    stream.write(bytes(size))
    seconds = case.rng.choice((1, 5, 60))
    time.sleep(seconds)
    filler.unlink()
    case.expect(process, {0, 1}, "[Nn]o space left")
    return f"{moment}, full for {seconds} s"


def finish(case: SweepCase) -> tuple[int, int]:
    """Goes on until all jobs are done; returns how many were begun again, and the most steps that one repeated."""
    for _ in range(4):
        if case.expect(case.go_on(), {0, 1}) == 0:
            break
    else:
        case.problems.append("not done after four attempts")
    repeated = []
    for job in case.jobs():
        if json.loads((job / "job.json").read_text())["attempt"] > 1:
            resumed = re.findall(r"resumed after step (\d+)", (job / "job.log").read_text())
            repeated.append(case.reached.get(job.name, 0) - int([*resumed, "0"][0]))
    return len(repeated), max([0, *repeated])


def run_sweep_case(
    kind: str, folder: Path, reference: Path, seconds: float, rng: random.Random
) -> tuple[str, int, list[str]]:
    """The moment of the harm, the steps that were repeated, and the problems of one case."""
    with mounted(DISK) if kind == "sweep: full disk" else nullcontext(folder) as place:
        case = SweepCase(place / "sweep", seconds, rng)
        moment = SWEEP_KINDS[kind](case)
        again, lost = finish(case)
        there, wanted = (sorted(path.name for path in sweep.iterdir()) for sweep in (case.folder, reference))
        if there != wanted:
            case.problems.append(f"the sweep's folder holds {there}")
        for job in case.jobs():
            found = differences(job, reference / job.name, incomplete=False)
            case.problems += [f"{job.name}: {text}" for text in found]
        return f"{moment}, {again} begun again", lost, case.problems


SWEEP_KINDS: dict[str, Callable[[SweepCase], str]] = {
    "sweep: worker killed": kill_worker,
    "sweep: controller killed": kill_controller,
    "sweep: two controllers": start_twice,
    "sweep: full disk": fill_disk,
}
