"""Starts the processes that share the run of one job: torchrun, with their output in the job's log."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from nfsd3d.jobs.cores import threads
from nfsd3d.runs.process import start_time
from nfsd3d.train.interrupts import StopRequest

POLL = 0.1
"""Seconds between two looks at signals."""


def run_module(
    module: str, arguments: Sequence[str], *, processes: int, each: int | None, log: Path, stop: StopRequest
) -> int:
    """Runs ``python -m module`` with this process's number and start time, then ``arguments``, in ``processes``.

    Each has ``each`` threads (None: as it is). At a signal to ``stop`` they are told to end. Returns torchrun's exit
    code.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    parent = [str(os.getpid()), start_time(os.getpid()) or ""]
    limits = {} if each is None else threads(each)
    with log.open("ab") as output:
        # A session of its own: a signal to this one's process group would reach torchrun and its processes, too.
        process = subprocess.Popen(
            [*torchrun, "-m", module, *parent, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **limits},
            start_new_session=True,
        )
        return _ended(process, stop)


def _ended(process: "subprocess.Popen[bytes]", stop: StopRequest) -> int:
    """The exit code; hands on the signal to ``stop``, once, as SIGTERM: others kill torchrun."""
    told = False
    while True:
        try:
            return process.wait(POLL)
        except subprocess.TimeoutExpired:
            if stop.signum is not None and not told:
                process.terminate()
                told = True
