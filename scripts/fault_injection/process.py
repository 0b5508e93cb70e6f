"""The command in a process of its own, and how far its run has come."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
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

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
LIMIT = 300.0
"""Seconds after which a process counts as hung."""


class Process(subprocess.Popen[bytes]):
    """The command in a process of its own, with what it prints."""

    def __init__(self, *arguments: str) -> None:
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `end`)
        command = [sys.executable, str(ROOT / "launch.py"), *arguments]
        super().__init__(
            command, stdout=self._printed, stderr=subprocess.STDOUT, env=ENVIRONMENT, start_new_session=True
        )

    def end(self) -> tuple[int, str]:
        """Waits for the exit code and the output; a process that hangs is killed, and has the code 124."""
        try:
            code = self.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.kill()
            self.wait()
            code = 124
        with self._printed:
            self._printed.seek(0)
            return code, self._printed.read().decode(errors="replace")

    def when(self, ready: Callable[[], bool], limit: float = LIMIT) -> bool:
        """Waits until ``ready``; false if the process has ended before, or after ``limit`` seconds."""
        started = time.monotonic()
        while self.poll() is None and time.monotonic() - started < limit:
            if ready():
                return True
            time.sleep(0.0005)
        return False


def steps_of(run_dir: Path) -> int:
    """The steps that the metrics of a run have."""
    try:
        return (run_dir / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def checkpoint_of(run_dir: Path) -> int:
    """The step of the newest checkpoint; 0 without one."""
    return max((int(path.stem[5:]) for path in (run_dir / "checkpoints").glob("step-*.json")), default=0)
