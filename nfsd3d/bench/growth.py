"""How time and memory grow: of a training step with views, pixels, samples and table; of the export with its cells.

Every size is measured in a process of its own, on the demo's recipe: steps go on from a trained scene, whose empty
cells are known; where the size is the scene's own, from its own training.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from nfsd3d.bench.tree import ROOT, Tree, demo
from nfsd3d.visualize.charts import picture, power_chart

OPTION = "--growth"
SCENE_STEPS = 150
"""Training steps of a scene: its occupancy grid has seen every cell after 64."""
# So many samples that no step is lengthened; nothing is exported, and every step is in the metrics.
SETTINGS = (
    f"generator.max_samples={2**26}",
    "export.mesh=false",
    "export.turntable=false",
    "export.report=false",
    "train.log_every=1",
)
TEXELS = 1024


@dataclass(frozen=True)
class Axis:
    """A size of a training step that grows: the setting ``key`` takes ``values``, with ``also`` as other settings.

    ``amount`` is what a value means for the work, and ``name`` its name. ``own_scene``: the size is the scene's, so
    that each is trained from the start.
    """

    name: str
    key: str
    values: tuple[int, ...]
    also: tuple[str, ...] = ()
    amount: Callable[[int], float] = float
    own_scene: bool = False


AXES = (
    Axis("views of a step", "train.batch_size", (1, 2, 4, 8, 16)),
    Axis("pixels of a view", "train.resolution", (64, 128, 256, 512), ("train.batch_size=1",), lambda side: side**2),
    Axis("samples along the diagonal", "generator.samples_per_ray", (32, 64, 128, 256), own_scene=True),
    Axis(
        "entries of a table",
        "generator.encoding.log2_entries",
        (13, 15, 17, 19, 21),
        amount=lambda exponent: 2**exponent,
        own_scene=True,
    ),
)
CELLS = (64, 128, 256, 512)


@dataclass(frozen=True)
class Size:
    """What a ``value`` of a size takes: milliseconds of a step, or of an export; and the process's peak memory in MB.

    ``amount`` is of what the growth is named for; ``samples`` are along all rays of a step, None for an export.
    """

    value: int
    amount: float
    milliseconds: float
    megabytes: float
    samples: float | None = None


@dataclass(frozen=True)
class Growth:
    """The measured sizes of an axis, ascending: ``name`` says what grows, ``setting`` what was set."""

    name: str
    setting: str
    sizes: tuple[Size, ...]


def count() -> int:
    """Commands that `measure` runs."""
    return 1 + sum(len(axis.values) for axis in AXES) + len(CELLS)


def measure(steps: int, threads: int, on_measured: Callable[[], None] = lambda: None) -> list[Growth]:
    """The growth along every axis, each size with ``steps`` training steps, of which the last half counts.

    ``on_measured`` is called after each command.

    Raises:
        InputError: a command failed.
    """
    tree, found = Tree(ROOT, threads, OPTION), []
    with TemporaryDirectory(prefix="nfsd3d-bench-") as temporary:
        folder = Path(temporary)
        scene = folder / "scene"
        tree.run(*demo(scene, SCENE_STEPS, *SETTINGS))
        on_measured()
        for axis in AXES:
            sizes = []
            for value in axis.values:
                sizes.append(_step(tree, folder / f"{axis.key}-{value}", scene, axis, value, steps))
                on_measured()
            found.append(Growth(axis.name, axis.key, tuple(sizes)))
        exports = []
        for cells in CELLS:
            exports.append(_export(tree, folder / f"mesh-{cells}", scene, cells))
            on_measured()
    return [*found, Growth("cells that the surface crosses, in proportion", "export.resolution", tuple(exports))]


def _step(tree: Tree, run_dir: Path, scene: Path, axis: Axis, value: int, steps: int) -> Size:
    begins = () if axis.own_scene else (f"source_run={scene}",)
    taken = SCENE_STEPS + steps if axis.own_scene else steps
    _, memory = tree.run(*demo(run_dir, taken, f"{axis.key}={value}", *axis.also, *begins, *SETTINGS))
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines][-max(2, steps // 2) :]
    seconds = [after["seconds"] - before["seconds"] for before, after in pairwise(rows)]
    config = dict(setting.split("=") for setting in (*axis.also, f"{axis.key}={value}"))
    views, side = (int(config.get(key, usual)) for key, usual in (("train.batch_size", 4), ("train.resolution", 64)))
    samples = statistics.fmean(row["samples_per_ray"] for row in rows) * views * side**2
    return Size(value, float(axis.amount(value)), 1e3 * statistics.median(seconds), memory, samples)


def _export(tree: Tree, folder: Path, scene: Path, cells: int) -> Size:
    sizes = ("--resolution", str(cells), "--texture-size", str(TEXELS), "--formats", "glb", "--output", str(folder))
    seconds, memory = tree.run("scripts/export_mesh.py", str(scene), *sizes)
    return Size(cells, float(cells**2), 1e3 * seconds, memory)


def chart(found: Sequence[Growth]) -> str:
    """A file of SVG with the time and the memory by each size, on logarithmic scales."""
    charts = []
    for growth in found:
        for unit, values in (
            ("ms", [size.milliseconds for size in growth.sizes]),
            ("MB", [size.megabytes for size in growth.sizes]),
        ):
            points = [(size.amount, value) for size, value in zip(growth.sizes, values, strict=True)]
            charts.append(power_chart(f"{unit} by {growth.name}", points))
    return picture(charts)
