"""The harms that are done to a run, each at a random moment."""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fault_injection.process import EVERY, STEPS, Process, checkpoint_of, steps_of

STOPPING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]


@dataclass
class Case:
    """What a harm needs: the run's directory and arguments, its usual duration, and random numbers."""

    run_dir: Path
    arguments: list[str]
    seconds: float
    rng: random.Random
    problems: list[str]
    lines_lost: bool = False

    def start(self) -> Process:
        """Starts the run."""
        return Process(*self.arguments, f"run_dir={self.run_dir}")

    def start_to_a_random_moment(self) -> tuple[Process, str]:
        """Starts the run and waits for a random moment: any, within a checkpoint's writing, or the export; names it."""
        process, choice = self.start(), self.rng.choice(["any", "any", "checkpoint", "export"])
        if choice == "checkpoint":
            after = self.rng.randrange(0, STEPS, EVERY)
            writing = self.run_dir / "checkpoints"
            found = process.when(lambda: steps_of(self.run_dir) >= after and any(writing.glob(".nfsd3d-*")))
            return process, f"checkpoint after step {after}" if found else "end"
        if choice == "export":
            process.when(lambda: steps_of(self.run_dir) >= STEPS)
            process.when(lambda: False, self.rng.uniform(0, 0.2 * self.seconds))
            return process, "export"
        wait = self.rng.uniform(0, self.seconds)
        process.when(lambda: False, wait)
        return process, f"{wait / self.seconds:.0%} of the time"

    def expect(self, code: int, output: str, wanted: set[int], words: str = "") -> None:
        """Notes an exit code or output that is not wanted."""
        if code not in wanted:
            self.problems.append(f"exit code {code}, not {sorted(wanted)}: {output[-300:]}")
        if "Traceback" in output:
            self.problems.append(f"traceback: {output[output.index('Traceback') :][-500:]}")
        if code in wanted and code != 0 and not re.search(words, output):
            self.problems.append(f"output without {words!r}: {output[-300:]}")


def kill(case: Case) -> str:
    """SIGKILL, which nothing can answer."""
    process, moment = case.start_to_a_random_moment()
    process.kill()
    process.end()
    return moment


def stop(case: Case) -> str:
    """A signal that asks to stop; sometimes twice, or to the whole process group too."""
    signum = case.rng.choice(STOPPING)
    process, moment = case.start_to_a_random_moment()
    for send in case.rng.choice([[os.kill], [os.kill, os.kill], [os.killpg, os.kill]]):
        with suppress(ProcessLookupError):
            send(process.pid, signum)
    code, output = process.end()
    # Before the interpreter has run the program's first line, the signal's default action ends it.
    early = {-signum, 1} if moment.endswith("time") and not case.run_dir.exists() else set()
    if not (early and code in early):
        case.expect(code, output, {0, 128 + signum}, f"interrupted by {signal.Signals(signum).name}")
    return f"{signal.Signals(signum).name}, {moment}"


def starve(case: Case, limit: int, values: range, words: str) -> str:
    """A resource limit of the running process is lowered."""
    process, moment = case.start_to_a_random_moment()
    with suppress(ProcessLookupError):
        _, hard = resource.prlimit(process.pid, limit)
        resource.prlimit(process.pid, limit, (case.rng.choice(values), hard))
    code, output = process.end()
    case.expect(code, output, {0, 1}, words)
    return moment


def fill_disk(case: Case) -> str:
    """A file system of random size; the cause is removed by moving the run to one with space."""
    with mounted(case.rng.randint(100, 6000)) as disk:
        outside, case.run_dir = case.run_dir, disk / "run"
        process = case.start()
        code, output = process.end()
        case.expect(code, output, {0, 1, 2}, "[Nn]o space left")
        size = sum(path.stat().st_size for path in disk.rglob("*") if path.is_file())
        if case.run_dir.exists():
            shutil.copytree(case.run_dir, outside)
        case.run_dir = outside
    return f"full after {size // 1024} KiB"


def damage(case: Case) -> str:
    """Bytes of a killed run's files are flipped, cut off or replaced by zeros."""
    process = case.start()
    reached = case.rng.randrange(EVERY + 1, STEPS)
    process.when(lambda: checkpoint_of(case.run_dir) >= EVERY and steps_of(case.run_dir) >= reached)
    process.kill()
    process.end()
    if (case.run_dir / "summary.json").exists():
        return "done before"  # nobody reads its files again here
    newest = case.run_dir / "checkpoints" / f"step-{checkpoint_of(case.run_dir):06d}.json"
    files = [newest, newest.with_suffix(".safetensors"), case.run_dir / "metrics.jsonl"]
    path = case.rng.choice([file for file in files if file.exists()] or [case.run_dir / "metrics.jsonl"])
    content, how = bytearray(path.read_bytes()), case.rng.choice(["flipped bit", "cut off", "zeros"])
    at = case.rng.randrange(len(content))
    if how == "flipped bit":
        content[at] ^= 1 << case.rng.randrange(8)
    elif how == "cut off":
        del content[at:]
    else:
        content[at:] = bytes(len(content) - at)
    path.write_bytes(content)
    return f"{path.suffix}: {how}"


def start_twice(case: Case) -> str:
    """The same directory is started, or resumed, by a second process; one of the two must be refused."""
    first, moment = case.start_to_a_random_moment()
    resumed = case.rng.random() < 0.5 and checkpoint_of(case.run_dir) > 0
    second = Process("--resume", str(case.run_dir)) if resumed else case.start()
    outcomes = [first.end(), second.end()]
    refused = [output for code, output in outcomes if code == 2]
    for code, output in outcomes:
        case.expect(code, output, {0, 2}, "in use by|already used|already holds|holds a run")
    # The second may find the run done, or resume it when the first has just ended.
    if len(refused) != 1 and not (resumed and not refused):
        case.problems.append(f"{len(refused)} of 2 processes were refused")
    return f"{'resumed' if resumed else 'started'} at {moment}"


def move_away(case: Case) -> str:
    """The run directory disappears, and comes back afterwards."""
    process, moment = case.start_to_a_random_moment()
    aside = case.run_dir.with_name("aside")
    with suppress(FileNotFoundError):
        case.run_dir.rename(aside)
    code, output = process.end()
    if aside.exists():
        case.expect(code, output, {0, 1, 2}, "gone|No such file|cannot be written")
        if case.run_dir.exists():
            case.problems.append(f"made again: {[path.name for path in case.run_dir.iterdir()]}")
            shutil.rmtree(case.run_dir)
        aside.rename(case.run_dir)
    return moment


@contextmanager
def mounted(kilobytes: int) -> Iterator[Path]:
    """A small file system in memory."""
    folder = Path(tempfile.mkdtemp())
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def can_mount() -> bool:
    """Whether this user may mount file systems."""
    try:
        with mounted(64):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


KINDS: dict[str, Callable[[Case], str]] = {
    "kill": kill,
    "signal": stop,
    "file size limit": partial(starve, limit=resource.RLIMIT_FSIZE, values=range(50_000), words="too large"),
    "no file descriptors": partial(
        starve, limit=resource.RLIMIT_NOFILE, values=range(3, 4), words="[Tt]oo many open files|descriptor"
    ),
    "damaged file": damage,
    "two processes": start_twice,
    "directory moved": move_away,
    "full disk": fill_disk,
}
