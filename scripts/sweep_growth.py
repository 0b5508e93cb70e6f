"""Time and memory of the process that controls a sweep, by the number of its jobs.

    python scripts/sweep_growth.py [--jobs 10,100,1000,10000] [--workers 2]

The jobs run on the local engine and only write that they are done. Each number of jobs has a controlling process of its
own, which writes the manifest, runs the jobs, and writes tables and page. Prints a Markdown table.
"""

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def finish(arguments: list[str]) -> None:
    """A job: writes a summary into the directory of its last argument, ``run_dir=PATH``."""
    run_dir = Path(arguments[-1].removeprefix("run_dir="))
    summary = {"status": "done", "steps": 1, "seconds": 0.1, "final_metrics": {"grad_norm": 1.0}}
    (run_dir / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


def control(folder: Path, jobs: int, workers: int) -> dict[str, float]:
    """Runs a sweep of ``jobs`` jobs in this process; returns its times in seconds and its peak memory in MB."""
    from nfsd3d.jobs.controller import run
    from nfsd3d.jobs.engines.base import EngineSettings
    from nfsd3d.jobs.manifest import new_manifest, write
    from nfsd3d.jobs.report import write_report
    from nfsd3d.jobs.table import rows_of, write_tables

    started = time.process_time()
    named = [(f"{number}-seed={number}", [f"seed={number}"], {"seed": str(number)}) for number in range(jobs)]
    manifest = new_manifest(folder, "sweep", ["prompt=a red cube"], ["seed"], named)
    write(manifest)
    written, begun = time.process_time(), time.monotonic()
    command = importlib.import_module("sweep_growth").finish  # workers import it by this name
    counts = run(manifest, EngineSettings(workers=workers, threads=1), command)
    ended, before = time.monotonic(), time.process_time()
    rows = rows_of(manifest)
    told = time.process_time()
    write_tables(manifest, rows)
    write_report(manifest, rows)
    if counts != {"done": jobs}:
        raise SystemExit(f"not all jobs are done: {counts}")
    if "torch" in sys.modules:
        raise SystemExit("the controlling process has imported torch")
    use = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "jobs": jobs,
        "write": written - started,
        "run": ended - begun,
        "status": told - before,
        "report": time.process_time() - told,
        "cpu": use.ru_utime + use.ru_stime,
        "megabytes": use.ru_maxrss / (1024 if sys.platform == "linux" else 1024**2),
    }


def main() -> int:
    """Prints the table, or with ``--folder`` the numbers of one sweep as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", default="10,100,1000,10000", help="numbers of jobs, separated by commas")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder is not None:
        print(json.dumps(control(options.folder, int(options.jobs), options.workers)))
        return 0
    print("| jobs | jobs, s | CPU, s | manifest, CPU s | status, CPU s | tables and page, CPU s | peak memory, MB |")
    print("|--:|--:|--:|--:|--:|--:|--:|", flush=True)
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    for jobs in map(int, options.jobs.split(",")):
        with tempfile.TemporaryDirectory(prefix="growth-") as folder:
            command = [sys.executable, __file__, "--jobs", str(jobs), "--workers", str(options.workers)]
            done = subprocess.run(
                [*command, "--folder", folder],
                env={**os.environ, "PYTHONPATH": path},
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # a line for each job
                text=True,
                check=True,
            )
        found = json.loads(done.stdout)
        times = " | ".join(f"{found[name]:.2f}" for name in ("run", "cpu", "write", "status", "report"))
        print(f"| {jobs:,} | {times} | {found['megabytes']:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
