"""What engines cost: a sweep beside `xargs -P` with the same command lines, and jobs that do nothing.

    python scripts/bench_sweeps.py [--engines local joblib submitit_local ray] [--jobs 16] [--steps 100] [--workers 2]

Runs the sweep's command lines with xargs, by each engine, and with xargs again, one thread a job, on a machine with
nothing else to do. Prints Markdown: the seconds, their ratio to the mean of xargs, and with jobs that do nothing the
seconds until the first has ended, and those of each further one on a worker.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nfsd3d.jobs.controller import ENGINES, run
from nfsd3d.jobs.cores import threads
from nfsd3d.jobs.engines.base import EngineName, EngineSettings
from nfsd3d.jobs.manifest import new_manifest, read, write

SCENE = (
    *("--config", "nfsd", "machine=cpu", "prior=shapes", "prompt=a red cube", "train.batch_size=1"),
    *("train.resolution=32", "export.mesh=false", "export.turntable=false", "export.report=false"),
)
IDLE_JOBS = 20
"""Jobs that do nothing, on each worker."""


def end_at_once(arguments: list[str]) -> None:
    """A job's command that does nothing but tell that it is done."""
    (run_dir,) = [word.partition("=")[2] for word in arguments if word.startswith("run_dir=")]
    Path(run_dir, "summary.json").write_text(json.dumps({"status": "done"}), encoding="utf-8")


def seconds_of(command: list[str], text: str | None = None) -> float:
    """The time that a command takes, whose output is shown only if it fails."""
    environment = {**os.environ, **threads(1)}
    start = time.perf_counter()
    done = subprocess.run(command, input=text, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def xargs(folder: Path, jobs: int, steps: int, workers: int) -> float:
    """The seconds of all runs with ``xargs -P``."""
    own = [
        ["-m", "nfsd3d", *SCENE, f"train.steps={steps}", f"seed={seed}", f"run_dir={folder / str(seed)}"]
        for seed in range(jobs)
    ]
    return seconds_of(
        ["xargs", f"-P{workers}", "-L1", sys.executable], "".join(shlex.join(line) + "\n" for line in own)
    )


def sweep(folder: Path, engine: str, jobs: int, steps: int, workers: int) -> float:
    """The seconds of the sweep, from its command's start to its end."""
    seeds = "seed=" + ",".join(map(str, range(jobs)))
    launcher = [f"hydra/launcher={engine}", f"hydra.launcher.workers={workers}", "hydra.launcher.threads=1"]
    overrides = [f"train.steps={steps}", seeds, f"run_dir={folder}"]
    return seconds_of([sys.executable, "-m", "nfsd3d", *SCENE, "-m", *overrides, *launcher])


def idle(folder: Path, engine: EngineName, workers: int) -> tuple[float, float]:
    """Seconds until the first of many jobs that do nothing has ended, and of each further one on a worker."""
    from bench_sweeps import end_at_once as command  # by its module's name, by which workers import it

    folder.mkdir()
    jobs: list[tuple[str, list[str], dict[str, str]]] = [
        (f"{number}", [], {"job": f"{number}"}) for number in range(IDLE_JOBS * workers)
    ]
    write(new_manifest(folder, "sweep", [], ["job"], jobs))
    ends: list[float] = []
    start = time.perf_counter()
    settings = EngineSettings(engine=engine, workers=workers, threads=1)
    run(read(folder), settings, command, lambda job, state: ends.append(time.perf_counter() - start))
    return ends[0], (ends[-1] - ends[0]) * workers / (len(ends) - 1)


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    others = [name for name in ENGINES if name != "submitit_slurm"]
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=others)
    parser.add_argument("--jobs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))
    amount = options.jobs, options.steps, options.workers
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("xargs, for the first time", file=sys.stderr)
        around = [xargs(folder / "xargs-1", *amount)]
        taken = {}
        for engine in options.engines:
            print(engine, file=sys.stderr)
            taken[engine] = (
                sweep(folder / engine, engine, *amount),
                *idle(folder / f"{engine}-idle", engine, options.workers),
            )
        print("xargs, again", file=sys.stderr)
        around.append(xargs(folder / "xargs-2", *amount))
    mean = sum(around) / 2
    print("| engine | seconds | to xargs | first idle job, s | each further one, s |\n|---|--:|--:|--:|--:|")
    print(f"| xargs -P {options.workers} | {around[0]:.1f}, {around[1]:.1f} | 1 | | |")
    for engine, (whole, first, further) in taken.items():
        print(f"| {engine} | {whole:.1f} | {whole / mean:.3f} | {first:.1f} | {further:.2f} |")


if __name__ == "__main__":
    main()
