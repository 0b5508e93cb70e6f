"""Commands of a source tree, run in processes of their own, with their time and memory."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO

import nfsd3d
from nfsd3d.errors import InputError
from nfsd3d.jobs.cores import threads

ROOT = Path(nfsd3d.__file__).parents[1]
PROMPT = "a red and white dotted mushroom"

# The largest memory that a system reports of a process is at least what the process had that started it, so a small one
# starts the command.
_MEASURED = """
import resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.call(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=file)
sys.exit(code)
"""


@dataclass(frozen=True)
class Tree:
    """A source tree whose commands are run with this Python and its packages, for a command-line ``option``."""

    folder: Path
    threads: int
    option: str

    def run(self, *arguments: str) -> tuple[float, float]:
        """(seconds, peak memory in MB) of a command in the tree.

        Raises:
            InputError: it failed.
        """
        with (
            TemporaryDirectory(prefix="nfsd3d-bench-") as temporary,
            self.started("-c", _MEASURED, f"{temporary}/use", sys.executable, *arguments) as (process, output),
        ):
            if process.wait():
                raise self.failure(arguments, output)
            seconds, memory = Path(temporary, "use").read_text(encoding="utf-8").split()
        return float(seconds), float(memory) * (1 if sys.platform == "darwin" else 1024) / 1e6

    @property
    def demo_config(self) -> str:
        """The experiment of the tree's ``make demo``."""
        found = re.search(r"launch\.py --config (\S+)", (self.folder / "Makefile").read_text(encoding="utf-8"))
        assert found is not None
        return found[1]

    @contextmanager
    def started(self, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
        """A command in the tree and the file of its output; it is killed at the end of the block if it still runs."""
        environment = {**os.environ, **threads(self.threads), "PYTHONPATH": str(self.folder)}
        with TemporaryFile() as output:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                yield process, output
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()

    def failure(self, arguments: tuple[str, ...], output: IO[bytes]) -> InputError:
        """The error of a command that ended too early, with the last line of its output."""
        output.seek(0)
        lines = output.read().decode(errors="replace").strip().splitlines() or ["no output"]
        return InputError(f"{self.option}: {' '.join(arguments[:3])} failed in {self.folder}: {lines[-1]}")


def demo(run_dir: Path, steps: int | None, *settings: str, config: str = "configs/nfsd.yaml") -> tuple[str, ...]:
    """The command of a run of the demo, with other ``settings``; without ``steps`` with those of its ``config``."""
    given = (f"prompt={PROMPT}", *([] if steps is None else [f"train.steps={steps}"]), f"run_dir={run_dir}")
    return ("launch.py", "--config", config, *given, "machine=cpu", *settings)
