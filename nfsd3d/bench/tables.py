"""Tables of benchmark results for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from nfsd3d.bench.against import Figure
    from nfsd3d.bench.diffusion_step import Comparison, StageTiming
    from nfsd3d.bench.growth import Growth
    from nfsd3d.bench.kernels import KernelTiming
    from nfsd3d.bench.step import StepTiming


def kernel_table(title: str, timings: Sequence[KernelTiming]) -> Table:
    """The timings of a kernel, one row for each implementation."""
    table = _table(title, "", "forward, ms", "ratio", "forward + backward, ms", "ratio")
    for timing in timings:
        row = [timing.name, f"{timing.forward:.2f}", f"{timing.forward_ratio:.1f}"]
        if timing.training is not None:
            row += [f"{timing.training:.2f}", f"{timing.training_ratio:.1f}"]
        table.add_row(*row)
    return table


def step_table(timing: StepTiming) -> Table:
    """The parts of a training step."""
    title = (
        f"training step: {timing.steps_per_second:.2f} steps/s, {timing.samples_per_ray:.1f} samples per ray, "
        f"{timing.evaluations:.1f} UNet evaluations"
    )
    table = _table(title, "part", "ms", "share")
    for name, milliseconds in timing.milliseconds.items():
        table.add_row(name, f"{milliseconds:.1f}", f"{timing.shares[name]:.0%}")
    return table


def ratio_table(revision: str, figures: Sequence[Figure]) -> Table:
    """Medians of two source trees, and how many times less this one takes."""
    table = _table("", "", f"{revision}", "this tree", "times less", "in a round")
    for figure in figures:
        smallest, largest = figure.ratio_range
        theirs, ours = (f"{median(values):.4g} {figure.unit}" for values in (figure.theirs, figure.ours))
        table.add_row(figure.name, theirs, ours, f"{figure.ratio:.2f}", f"{smallest:.2f} to {largest:.2f}")
    return table


def growth_table(growth: Growth) -> Table:
    """Time and memory of each size of an axis."""
    table = _table("", growth.setting, "samples", "ms", "per sample, ns", "peak memory, MB")
    for size in growth.sizes:
        counted = (
            ("", "")
            if size.samples is None
            else (f"{size.samples:,.0f}", f"{1e6 * size.milliseconds / size.samples:.0f}")
        )
        table.add_row(str(size.value), counted[0], f"{size.milliseconds:,.0f}", counted[1], f"{size.megabytes:,.0f}")
    return table


def comparison_tables(comparison: Comparison) -> list[Table]:
    """For each stage of the recipe, the parts of a step with this program's settings and a baseline's."""
    tables = []
    for ours, baseline, speedup in zip(comparison.ours, comparison.baseline, comparison.speedups, strict=True):
        stage = ours.stage
        title = (
            f"{comparison.method}, views of {stage.resolution} pixels ({stage.start:.0%} to {stage.end:.0%} of "
            f"training), {comparison.device}: {speedup:.2f} times the baseline's speed"
        )
        table = _table(title, "", "ms", "baseline's, ms")
        for name, milliseconds in ours.timing.milliseconds.items():
            table.add_row(name, f"{milliseconds:.1f}", f"{baseline.timing.milliseconds[name]:.1f}")
        table.add_section()
        mine, theirs = (_stage_cells(t, comparison.floor_ms(t)) for t in (ours, baseline))
        for name, value in mine.items():
            table.add_row(name, value, theirs[name])
        tables.append(table)
    return tables


def _stage_cells(measured: StageTiming, floor_ms: float) -> dict[str, str]:
    """The figures of a stage beside the times of its parts, by heading."""
    timing = measured.timing
    return {
        "steps/s": f"{timing.steps_per_second:.2f}",
        "UNet evaluations": f"{timing.evaluations:.2f}",
        "samples per ray": f"{timing.samples_per_ray:.1f}",
        "the prior's part, ms": f"{timing.prior_milliseconds:.1f}",
        "times its arithmetic": f"{timing.prior_milliseconds / floor_ms:.2f}",
        "TFLOP of UNet and encoder": f"{measured.tflop:.3f}",
        "of them per second": f"{measured.tflops:.3f}",
        "peak memory, GB": _or_empty(measured.peak_memory_gb),
        "with what torch keeps": _or_empty(measured.reserved_memory_gb),
    }


def _table(title: str, first: str, *numbers: str) -> Table:
    """An empty table with a column of text and columns of numbers, by their headings."""
    table = Table(title=title)
    table.add_column(first)
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table


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
