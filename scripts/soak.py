"""Soak test: a run of many tiny steps with checkpoints and previews must not grow in memory or open files.

    python scripts/soak.py [--steps 20000] [--generator latent|nerf] [--keep FOLDER]

Samples resident memory and open files of the running process (Linux), and compares the medians of the second and the
last quarter of the steps. Prints a line of Markdown; exits with 1 if memory grew by more than 2 % or files by any.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
QUIET = ["export.mesh=false", "export.turntable=false", "export.report=false", "machine=cpu", "prior=shapes"]
TINY = ["train.batch_size=1", "train.checkpoint_every=100", "train.preview_every=100", "train.preview_size=32"]
# At the usual rate of 0.03, latents wander out of range in some 5,000 steps of one view, and the run stops as diverged.
TINY_LATENT = ["train.learning_rate.latent=0.001"]
TINY_NERF = [
    *("backend=numba", "train.resolution=12", "generator.samples_per_ray=16", "generator.occupancy_resolution=16"),
    *("generator.encoding.levels=4", "generator.encoding.log2_entries=10", "train.regularizers.sparsity=0"),
]


def samples_of(process: subprocess.Popen[bytes], run_dir: Path) -> list[tuple[int, float, int]]:
    """(finished step, resident MB, open files) twice a second, until the process ends."""
    found, proc = [], Path(f"/proc/{process.pid}")
    while process.poll() is None:
        time.sleep(0.5)
        try:
            last = (run_dir / "metrics.jsonl").read_bytes().rstrip().rpartition(b"\n")[2]
            step = int(last.partition(b":")[2].partition(b",")[0])
            resident = int((proc / "statm").read_text().split()[1]) * resource.getpagesize() / 2**20
            found.append((step, resident, len(list((proc / "fd").iterdir()))))
        except (OSError, ValueError, IndexError):
            continue  # not begun, or just ended
    return found


def main() -> int:
    """Runs the soak test and prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--generator", choices=["latent", "nerf"], default="latent")
    parser.add_argument("--keep", type=Path, help="keep the run in this folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        run_dir = options.keep or Path(folder) / "run"
        chosen = [f"generator={options.generator}", f"train.steps={options.steps}", f"run_dir={run_dir}"]
        settings = [*QUIET, *TINY, *(TINY_NERF if options.generator == "nerf" else TINY_LATENT)]
        command = [sys.executable, str(ROOT / "launch.py"), "prompt=a red cube", *settings, *chosen]
        process = subprocess.Popen(command)
        samples = samples_of(process, run_dir)
        if process.returncode:
            return process.returncode
    quarter = options.steps / 4
    second = [sample for sample in samples if quarter <= sample[0] < 2 * quarter]
    last = [sample for sample in samples if 3 * quarter <= sample[0]]
    memory = [median(resident for _, resident, _ in part) for part in (second, last)]
    files = [median(count for *_, count in part) for part in (second, last)]
    growth = memory[1] / memory[0] - 1
    print("| generator | steps | MB, second quarter | MB, last quarter | growth | open files |")
    print("|---|--:|--:|--:|--:|--:|")
    shown = f"{memory[0]:.1f} | {memory[1]:.1f} | {growth:+.2%} | {files[0]:g}, {files[1]:g}"
    print(f"| {options.generator} | {options.steps:,} | {shown} |")
    return int(growth > 0.02 or files[1] > files[0])


if __name__ == "__main__":
    raise SystemExit(main())
