"""``nfsd3d bench``: the measurements of ``nfsd3d.bench`` on the demo's configuration, as tables or JSON."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from nfsd3d.arguments import whole_number, write_numbers
from nfsd3d.config import compose
from nfsd3d.errors import InputError
from nfsd3d.prior.resolve import EMBEDDED
from nfsd3d.schedules import milestone_at
from nfsd3d.settings import Config

if TYPE_CHECKING:
    from nfsd3d.bench import EncodingTiming, StepTiming

PROMPT = "a red and white dotted mushroom"
WARMUP_STEPS = 5


def main(argv: Sequence[str]) -> int:
    """Measures what ``argv`` asks for, prints it, and returns 0.

    Raises:
        InputError: the embedded model is not there, or ``--json`` names a file that cannot be written.
    """
    options = _parser().parse_args(argv)
    if options.only == "step" and not EMBEDDED.is_dir():
        raise InputError(
            f"--only step: there is no embedded model at {EMBEDDED}; train one with scripts/train_prior.py"
        )
    config = compose("nfsd", [f"prompt={PROMPT}", "prior=shapes", "machine=cpu"])

    import torch

    torch.set_num_threads(options.threads)
    console = Console()
    record: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    if options.only != "step":
        points, timings = _measure_encoding(config, options, console)
        console.print(encoding_table(points, options.threads, timings))
        record["encoding"] = {"points": points, "implementations": [asdict(timing) for timing in timings]}
    if options.only != "encoding":
        if EMBEDDED.is_dir():
            timing = _measure_step(config, options.steps, console)
            console.print(step_table(timing))
            record["step"] = asdict(timing)
        else:
            console.print(f"no embedded model at {EMBEDDED}: a training step is not measured", soft_wrap=True)
    write_numbers(options.json, record)
    return 0


def encoding_table(points: int, threads: int, timings: Sequence[EncodingTiming]) -> Table:
    """The timings of the hash encoding, one row for each implementation."""
    table = Table(title=f"hash encoding, {points:,} points, {threads} threads")
    for heading in ("", "forward, ms", "ratio", "forward + backward, ms", "ratio"):
        table.add_column(heading, justify="right" if heading else "left")
    for timing in timings:
        table.add_row(
            timing.name,
            f"{timing.forward:.2f}",
            f"{timing.forward_ratio:.1f}",
            f"{timing.training:.2f}",
            f"{timing.training_ratio:.1f}",
        )
    return table


def step_table(timing: StepTiming) -> Table:
    """The parts of a training step."""
    table = Table(
        title=f"training step: {timing.steps_per_second:.2f} steps/s, {timing.samples_per_ray:.1f} samples per ray, "
        f"{timing.evaluations:.1f} UNet evaluations"
    )
    for heading in ("part", "ms", "share"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    for name, milliseconds in timing.milliseconds.items():
        table.add_row(name, f"{milliseconds:.1f}", f"{timing.shares[name]:.0%}")
    return table


def _measure_encoding(
    config: Config, options: argparse.Namespace, console: Console
) -> tuple[int, list[EncodingTiming]]:
    import torch

    from nfsd3d import bench
    from nfsd3d.train.build import build_generator, camera_ranges

    generator = build_generator(config)
    if options.points is None:
        size = milestone_at(config.train.resolution, 0.0)
        positions = bench.demo_positions(generator, camera_ranges(config.cameras), config.train.batch_size, size)
    else:
        positions = torch.rand(options.points, 3, generator=torch.Generator().manual_seed(0))
    compiled = not options.no_compile and bench.can_compile()
    if not options.no_compile and not compiled:
        console.print("no C++ compiler: torch.compile is not measured")
    implementations = bench.encoding_implementations(generator.settings.encoding, compiled=compiled)
    with _progress(console) as progress:
        task = progress.add_task("hash encoding", total=options.rounds + 1)
        timings = bench.bench_encoding(
            implementations, positions, rounds=options.rounds, on_round=lambda: progress.advance(task)
        )
    return positions.shape[0], timings


def _measure_step(config: Config, steps: int, console: Console) -> StepTiming:
    from nfsd3d import bench
    from nfsd3d.train.build import build_parts

    parts = build_parts(config)
    with _progress(console) as progress:
        task = progress.add_task("training steps", total=steps + WARMUP_STEPS)
        return bench.bench_step(
            parts, config.train, steps=steps, warmup=WARMUP_STEPS, on_step=lambda: progress.advance(task)
        )


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nfsd3d bench",
        description="Measure, on the CPU and in the demo's configuration: the hash encoding (torch's embedding_bag, "
        "the same compiled, the numba kernel; ratios are to the kernel), and the parts of a training step with the "
        "embedded model.",
    )
    parser.add_argument("--threads", type=whole_number(1), default=2, help="of torch and numba (default: 2)")
    parser.add_argument("--only", choices=("encoding", "step"), help="measure only this")
    parser.add_argument("--rounds", type=whole_number(1), default=15, help="repetitions of each encoding (default: 15)")
    parser.add_argument("--steps", type=whole_number(1), default=30, help="training steps (default: 30)")
    parser.add_argument("--points", type=whole_number(1), help="random points (default: the samples of a first step)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes a minute")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the numbers to PATH too")
    return parser
