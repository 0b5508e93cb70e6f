"""Fault injection: runs that are killed, starved, damaged or started twice must resume to the bit-identical result.

    python scripts/chaos.py [--cases 200] [--seed 0] [--kinds kill,signal,...] [--workers 2] [--results FILE.jsonl]

Every case starts the real command in a process of its own, does one harm to it at a random moment, removes the cause,
resumes the run as the printed command says until it is done, and compares tensors, metrics and files with a run that
nothing happened to. Finished cases are kept in ``--results``; the same command goes on after them. Prints a Markdown
table of cases, survivors, lost steps and unwanted output; exits with 1 if a case failed.
"""

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.progress import track
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[1]
STEPS, EVERY = 12, 3
"""Steps of a run, and between two checkpoints."""
TINY = [
    *("machine=cpu", "prior=shapes", "prompt=a red cube", f"train.steps={STEPS}", f"train.checkpoint_every={EVERY}"),
    *("train.log_every=1", "train.preview_every=4", "train.keep_checkpoints=2", "train.batch_size=1"),
    *("train.tensorboard=false", "export.turntable_frames=8", "export.turntable_size=32", "export.resolution=32"),
    *("export.texture_size=64", "train.diverged.after=1.0"),
]
SMALL_NERF = ["train.resolution=24", "generator.samples_per_ray=32", "generator.occupancy_resolution=16"]
SETUPS = {
    "NFSD, latents": ["--config", "nfsd_2d", *TINY],
    "SDS, pixels": ["--config", "sds", "generator=image", *TINY],
    "ISM, latents": ["--config", "ism", "generator=latent", *TINY],
    "VSD, latents": ["--config", "vsd", "generator=latent", *TINY],
    "NFSD, NeRF, numba": ["--config", "nfsd", "backend=numba", *TINY, *SMALL_NERF],
    "VSD, NeRF, numba": ["--config", "vsd", "backend=numba", *TINY, *SMALL_NERF],
    "SDI, NeRF, torch": ["--config", "sdi", "backend=torch", *TINY, *SMALL_NERF],
}
"""Arguments of the command by a name for the table."""

STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
LIMIT = 300.0
"""Seconds after which a process counts as hung."""


@dataclass
class Outcome:
    """One case: ``lost`` are the steps repeated after it, ``problems`` what a user would not have wanted."""

    case: int
    kind: str
    setup: str
    moment: str
    lost: int
    problems: list[str]


class Process:
    """The command in a process of its own, with its output; ended with the block."""

    def __init__(self, *arguments: str) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        command = [sys.executable, str(ROOT / "launch.py"), *arguments]
        self.process = subprocess.Popen(
            command, stdout=self._output, stderr=subprocess.STDOUT, env=ENVIRONMENT, start_new_session=True
        )

    def wait(self) -> tuple[int, str]:
        """Exit code and output; a process that hangs is killed, and has the code 124."""
        try:
            code = self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            code = 124
        self._output.seek(0)
        return code, self._output.read().decode(errors="replace")

    def when(self, ready: Callable[[], bool], limit: float = LIMIT) -> bool:
        """Waits until ``ready``; false if the process has ended before, or after ``limit`` seconds."""
        started = time.monotonic()
        while self.process.poll() is None and time.monotonic() - started < limit:
            if ready():
                return True
            time.sleep(0.0005)
        return False


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

    def at_a_random_moment(self, process: Process) -> str:
        """Waits for a random moment of the run and names it: any, within a checkpoint's writing, or in the export."""
        choice = self.rng.choice(["any", "any", "checkpoint", "export"])
        if choice == "checkpoint":
            after = self.rng.randrange(0, STEPS, EVERY)
            writing = self.run_dir / "checkpoints"
            found = process.when(lambda: steps_of(self.run_dir) >= after and any(writing.glob(".nfsd3d-*")))
            return f"checkpoint after step {after}" if found else "end"
        if choice == "export":
            process.when(lambda: steps_of(self.run_dir) >= STEPS)
            process.when(lambda: False, self.rng.uniform(0, 0.2 * self.seconds))
            return "export"
        wait = self.rng.uniform(0, self.seconds)
        process.when(lambda: False, wait)
        return f"{wait / self.seconds:.0%} of the time"

    def expect(self, code: int, output: str, wanted: set[int], words: str = "") -> None:
        """Notes an exit code or output that is not wanted."""
        if code not in wanted:
            self.problems.append(f"exit code {code}, not {sorted(wanted)}: {output[-300:]}")
        if "Traceback" in output:
            self.problems.append(f"traceback: {output[output.index('Traceback') :][-500:]}")
        if code in wanted and code not in (0, -signal.SIGKILL) and not re.search(words, output):
            self.problems.append(f"output without {words!r}: {output[-300:]}")


def steps_of(run_dir: Path) -> int:
    """The steps that the metrics of a run have."""
    try:
        return (run_dir / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def checkpoint_of(run_dir: Path) -> int:
    """The step of the newest checkpoint; 0 without one."""
    return max((int(path.stem[5:]) for path in (run_dir / "checkpoints").glob("step-*.json")), default=0)


def kill(case: Case) -> str:
    """SIGKILL, which nothing can answer."""
    process = case.start()
    moment = case.at_a_random_moment(process)
    process.process.kill()
    process.wait()
    return moment


def stop(case: Case) -> str:
    """A signal that asks to stop; sometimes twice, or to the whole process group too."""
    process, signum = case.start(), case.rng.choice(STOPPING)
    moment = case.at_a_random_moment(process)
    for send in case.rng.choice([[os.kill], [os.kill, os.kill], [os.killpg, os.kill]]):
        with suppress(ProcessLookupError):
            send(process.process.pid, signum)
    code, output = process.wait()
    # Before the interpreter has run the program's first line, the signal's default action ends it.
    early = {-signum, 1} if moment.endswith("time") and not case.run_dir.exists() else set()
    if not (early and code in early):
        case.expect(code, output, {0, 128 + signum}, f"interrupted by {signal.Signals(signum).name}")
    return f"{signal.Signals(signum).name}, {moment}"


def starve(limit: int, value: Callable[[Case], int], words: str) -> Callable[[Case], str]:
    """A harm that lowers a resource limit of the running process."""

    def harm(case: Case) -> str:
        process = case.start()
        moment = case.at_a_random_moment(process)
        with suppress(ProcessLookupError):
            _, hard = resource.prlimit(process.process.pid, limit)
            resource.prlimit(process.process.pid, limit, (value(case), hard))
        code, output = process.wait()
        case.expect(code, output, {0, 1}, words)
        return moment

    return harm


def fill_disk(case: Case) -> str:
    """A file system of random size; the cause is removed by moving the run to one with space."""
    with mounted(case.rng.randint(100, 6000)) as disk:
        outside, case.run_dir = case.run_dir, disk / "run"
        process = case.start()
        code, output = process.wait()
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
    process.process.kill()
    process.wait()
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
    first = case.start()
    moment = case.at_a_random_moment(first)
    resumed = case.rng.random() < 0.5 and checkpoint_of(case.run_dir) > 0
    second = Process("--resume", str(case.run_dir)) if resumed else case.start()
    outcomes = [first.wait(), second.wait()]
    refused = [output for code, output in outcomes if code == 2]
    for code, output in outcomes:
        case.expect(code, output, {0, 2}, "in use by|already used|already holds|holds a run")
    # The second may find the run done, or resume it when the first has just ended.
    if len(refused) != 1 and not (resumed and not refused):
        case.problems.append(f"{len(refused)} of 2 processes were refused")
    return f"{'resumed' if resumed else 'started'} at {moment}"


def move_away(case: Case) -> str:
    """The run directory disappears, and comes back afterwards."""
    process = case.start()
    moment = case.at_a_random_moment(process)
    aside = case.run_dir.with_name("aside")
    with suppress(FileNotFoundError):
        case.run_dir.rename(aside)
    code, output = process.wait()
    if aside.exists():
        case.expect(code, output, {0, 1, 2}, "gone|No such file|cannot be written")
        if case.run_dir.exists():
            case.problems.append(f"made again: {[path.name for path in case.run_dir.iterdir()]}")
            shutil.rmtree(case.run_dir)
        aside.rename(case.run_dir)
    return moment


KINDS: dict[str, Callable[[Case], str]] = {
    "kill": kill,
    "signal": stop,
    "file size limit": starve(resource.RLIMIT_FSIZE, lambda case: case.rng.randrange(0, 50_000), "too large"),
    "no file descriptors": starve(resource.RLIMIT_NOFILE, lambda case: 3, "[Tt]oo many open files|descriptor"),
    "damaged file": damage,
    "two processes": start_twice,
    "directory moved": move_away,
    "full disk": fill_disk,
}


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
        code, output = process.wait()
        case.expect(code, output, {0, 2})
        case.lines_lost |= "metrics.jsonl" in output  # the resumed run says that lines cannot be read
        if code == 2 and "no intact checkpoint" in output:  # the only one was damaged
            shutil.rmtree(case.run_dir)
            continue
        if found := re.search(r"resumed after step (\d+)", output):
            lost = max(lost, had - int(found[1]))
    case.problems.append("not done after four attempts")
    return lost


def differences(run_dir: Path, reference: Path, incomplete: bool) -> list[str]:
    """What differs between two finished runs: tensors, metrics without times, and the names of the files.

    ``incomplete``: lines of the metrics may be missing.
    """

    def metrics(folder: Path) -> list[dict[str, float]]:
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [{k: v for k, v in line.items() if k not in ("seconds", "steps_per_second")} for line in lines]

    def files(folder: Path) -> set[str]:
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}

    found = []
    name = f"checkpoints/step-{STEPS:06d}.safetensors"
    if not (run_dir / name).exists():
        return [f"no {name}"]
    ours, theirs = load_file(run_dir / name), load_file(reference / name)
    if ours.keys() != theirs.keys() or any(ours[key].tobytes() != theirs[key].tobytes() for key in ours):
        found.append("the tensors differ")
    lines = metrics(run_dir)
    if lines != [line for line in metrics(reference) if not incomplete or line in lines]:
        found.append("the metrics differ")
    missing, more = files(reference) - files(run_dir), files(run_dir) - files(reference)
    found += [f"missing: {sorted(missing)}"] * bool(missing)
    # Older checkpoints that are kept may differ by where the run was resumed.
    more = {name for name in more if not re.fullmatch(r"checkpoints/step-\d+\.(json|safetensors)", name)}
    return found + [f"left over: {sorted(more)}"] * bool(more)


def run_case(number: int, kind: str, setup: str, seed: int, reference: Path, seconds: float) -> Outcome:
    """One case from its harm to the finished run."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    case = Case(folder / "run", SETUPS[setup], seconds, random.Random(f"{seed} {number}"), [])
    try:
        moment = KINDS[kind](case)
        lost = finish(case)
        case.problems += differences(case.run_dir, reference, incomplete=case.lines_lost)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if lost > EVERY and kind != "damaged file":
        case.problems.append(f"{lost} steps lost")
    return Outcome(number, kind, setup, moment, lost, case.problems)


def references(setups: list[str], folder: Path) -> dict[str, tuple[Path, float]]:
    """A run of every setup that nothing happens to, and its seconds."""
    found = {}
    for number, setup in enumerate(track(setups, description="references", transient=True)):
        started = time.monotonic()
        run_dir = folder / str(number)
        code, output = Process(*SETUPS[setup], f"run_dir={run_dir}").wait()
        if code:
            raise SystemExit(f"{setup}: {output}")
        found[setup] = run_dir, time.monotonic() - started
    return found


def table(outcomes: list[Outcome]) -> str:
    """The outcomes by kind, as Markdown."""
    lines = ["| harm | cases | same result | most steps repeated | problems |", "|---|--:|--:|--:|--:|"]
    for kind in dict.fromkeys(outcome.kind for outcome in outcomes):
        these = [outcome for outcome in outcomes if outcome.kind == kind]
        good = sum(not outcome.problems for outcome in these)
        lines.append(
            f"| {kind} | {len(these)} | {good} | {max(outcome.lost for outcome in these)} | {len(these) - good} |"
        )
    good = sum(not outcome.problems for outcome in outcomes)
    return "\n".join([*lines, f"| all | {len(outcomes)} | {good} | | {len(outcomes) - good} |"])


def main() -> int:
    """Runs the cases that are not in the results yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--setups", default=";".join(SETUPS), help="names, separated by semicolons")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    kinds, setups = options.kinds.split(","), options.setups.split(";")
    if "full disk" in kinds and not can_mount():
        print("full disk: needs the right to mount file systems; left out", file=sys.stderr)
        kinds.remove("full disk")
    outcomes: list[Outcome] = []
    if options.results is not None and options.results.exists():
        outcomes = [Outcome(**json.loads(line)) for line in options.results.read_text().splitlines()]
    done = {outcome.case for outcome in outcomes}
    todo = [number for number in range(options.cases) if number not in done]
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder, ThreadPoolExecutor(options.workers) as pool:
        known = references(setups, Path(folder)) if todo else {}

        def perform(number: int) -> Outcome:
            kind, setup = kinds[number % len(kinds)], setups[number // len(kinds) % len(setups)]
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
