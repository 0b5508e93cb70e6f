"""A worker process of the local engine: ``python -m nfsd3d.jobs.worker COMMAND CORES THREADS PROCESSES``.

It reads jobs from stdin, a line ``[folder, number]`` each. When one has ended, it answers with a line: a JSON text, ""
or what `perform` returns. When stdin closes, its controller is gone: a run saves its checkpoint, and the process
ends.
"""

import importlib
import json
import os
import signal
import sys
import threading
from pathlib import Path
from queue import SimpleQueue

from nfsd3d.jobs.cores import keep_to
from nfsd3d.jobs.perform import perform
from nfsd3d.train.interrupts import Interrupted


def main() -> int:
    """Runs jobs until stdin closes; returns the exit code."""
    location, cores, threads, processes = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    module, name = location.split(":")
    command = getattr(importlib.import_module(module), name)
    keep_to(cores)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever prints to stdout must not answer
    given: SimpleQueue[str] = SimpleQueue()
    busy = threading.Event()
    threading.Thread(target=_read, args=(given, busy), daemon=True).start()
    while line := given.get():
        folder, number = json.loads(line)
        try:
            id = str(os.getpid())
            trouble = perform(
                command, Path(folder), number, engine="local", id=id, threads=threads, processes=processes
            )
        except Interrupted as interruption:
            return interruption.exit_code
        answers.write(json.dumps(trouble) + "\n")
        answers.flush()
        busy.clear()
    return 0


def _read(given: "SimpleQueue[str]", busy: threading.Event) -> None:
    """Hands on the lines of stdin; at its end interrupts the job that runs."""
    for line in sys.stdin:
        busy.set()
        given.put(line)
    given.put("")
    if busy.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    raise SystemExit(main())
