"""Tables of benchmark results for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from nfsd3d.bench.diffusion_step import Comparison
    from nfsd3d.bench.kernels import KernelTiming
    from nfsd3d.bench.step import StepTiming


def kernel_table(title: str, timings: Sequence[KernelTiming]) -> Table:
    """The timings of a kernel, one row for each implementation."""
    table = Table(title=title)
    for heading in ("", "forward, ms", "ratio", "forward + backward, ms", "ratio"):
        table.add_column(heading, justify="right" if heading else "left")
    for timing in timings:
        row = [timing.name, f"{timing.forward:.2f}", f"{timing.forward_ratio:.1f}"]
        if timing.training is not None:
            row += [f"{timing.training:.2f}", f"{timing.training_ratio:.1f}"]
        table.add_row(*row)
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


def comparison_tables(comparison: Comparison) -> list[Table]:
    """For each stage of the recipe, the parts of a step with this program's settings and a baseline's."""
    tables = []
    for ours, baseline, speedup in zip(comparison.ours, comparison.baseline, comparison.speedups, strict=True):
        stage = ours.stage
        table = Table(
            title=f"{comparison.method}, views of {stage.resolution} pixels ({stage.start:.0%} to {stage.end:.0%} of "
            f"training), {comparison.device}: {speedup:.2f} times the baseline's speed"
        )
        for heading in ("", "ms", "baseline's, ms"):
            table.add_column(heading, justify="right" if heading else "left")
        for name, milliseconds in ours.timing.milliseconds.items():
            table.add_row(name, f"{milliseconds:.1f}", f"{baseline.timing.milliseconds[name]:.1f}")
        table.add_section()
        rows = {
            "steps/s": [f"{t.timing.steps_per_second:.2f}" for t in (ours, baseline)],
            "UNet evaluations": [f"{t.timing.evaluations:.2f}" for t in (ours, baseline)],
            "samples per ray": [f"{t.timing.samples_per_ray:.1f}" for t in (ours, baseline)],
            "the prior's part, ms": [f"{t.timing.prior_milliseconds:.1f}" for t in (ours, baseline)],
            "times its arithmetic": [
                f"{t.timing.prior_milliseconds / comparison.floor_ms(t):.2f}" for t in (ours, baseline)
            ],
            "TFLOP of UNet and encoder": [f"{t.tflop:.3f}" for t in (ours, baseline)],
            "of them per second": [f"{t.tflops:.3f}" for t in (ours, baseline)],
            "peak memory, GB": [_or_empty(t.peak_memory_gb) for t in (ours, baseline)],
            "with what torch keeps": [_or_empty(t.reserved_memory_gb) for t in (ours, baseline)],
        }
        for name, (mine, theirs) in rows.items():
            table.add_row(name, mine, theirs)
        tables.append(table)
    return tables


def _or_empty(gigabytes: float | None) -> str:
    return "" if gigabytes is None else f"{gigabytes:.2f}"


def comparison_text(comparison: Comparison) -> str:
    """The conclusions: FLOPs, speed of the device, and hours of a run."""
    counted, record = comparison.counted, comparison.to_dict()
    lines = [
        f"arithmetic of one image: UNet {counted.unet:.3f} TFLOP, encoder {counted.encode:.3f} and "
        f"{counted.backward:.3f} back, decoder {counted.decode:.3f}",
        f"this device multiplies matrices of {comparison.precision} at {comparison.device_tflops:.3g} TFLOP/s",
        f"a run of {comparison.steps:,} steps, extrapolated from these: {record['hours']:.2f} hours, "
        f"the baseline's {record['baseline_hours']:.2f}",
    ]
    return "\n".join(lines)
