"""One of the processes that share a job's run: ``torchrun -m nfsd3d.jobs.rank PARENT STARTED COMMAND FOLDER NUMBER
ENGINE ID THREADS``.

The first one has the job as a single process would have it: its lock, its log, its outcome. The others compute their
shares. PARENT, which started at STARTED, is the process that was given the job: when it has ended, the run saves its
checkpoint and ends, too.
"""

import importlib
import sys
from pathlib import Path

from nfsd3d.errors import print_error
from nfsd3d.jobs.engines.workers import Controller
from nfsd3d.jobs.manifest import read
from nfsd3d.jobs.perform import Command, enter, perform
from nfsd3d.jobs.state import recorded_status
from nfsd3d.train.interrupts import Interrupted, stop_requests
from nfsd3d.train.torchrun import Worker


def main() -> int:
    """Runs the job, or a share of it; returns the exit code. A code other than 0 makes torchrun end the others."""
    parent, started, location, folder, number, engine, id, threads = sys.argv[1:]
    Controller(int(parent), started or None).guard()
    module, name = location.split(":")
    command: Command = getattr(importlib.import_module(module), name)
    worker = Worker.of_environment()
    try:
        with stop_requests() as stop:
            if not worker.first:
                with stop.at_once(), worker.silent():
                    manifest = read(Path(folder))
                    command(enter(manifest, manifest.jobs[int(number)], int(threads) or None))
                return 0
            trouble = perform(command, Path(folder), int(number), engine=engine, id=id, threads=int(threads) or None)
    except Interrupted as interruption:
        return interruption.exit_code
    except Exception as error:
        print_error(error)
        return 1
    if trouble:
        print(trouble, file=sys.stderr)
    manifest = read(Path(folder))
    # Without a run, for another process has done the job, the others would wait for one.
    done = worker.shared and recorded_status(manifest, manifest.jobs[int(number)]) == "done"
    return 0 if done else 1


if __name__ == "__main__":
    raise SystemExit(main())
