"""Measures this source tree and another revision of it in turn, each in processes of its own.

Machines differ and change while one measures; the ratio of two programs that took turns does not. So the figures of
this module are ratios of medians, with the range of the ratios of single rounds.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from nfsd3d.bench.tree import ROOT, Tree, demo
from nfsd3d.errors import InputError

MEASUREMENTS = ("step", "start", "run", "demo", "export", "export-512")
"""What is measured; `measure` says what each is."""
_EXPORTS = {"export": (256, 1024), "export-512": (512, 2048)}
WARMUP_ROUNDS = 1
_POLL_S = 0.01
_OPTION = "--against"


@dataclass(frozen=True)
class Settings:
    """How much is measured: ``rounds`` of both trees, ``steps`` of training each time, on ``threads``."""

    rounds: int
    steps: int
    threads: int


@dataclass(frozen=True)
class Figure:
    """A measured quantity, in ``unit``, of this tree and of the other one; one value a round."""

    name: str
    unit: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """How many times less it is in this tree, by the medians."""
        return statistics.median(self.theirs) / statistics.median(self.ours)

    @property
    def ratio_range(self) -> tuple[float, float]:
        """The smallest and largest ratio of a round."""
        ratios = [theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True)]
        return min(ratios), max(ratios)


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A folder with the source tree of a ``revision``, removed afterwards.

    Raises:
        InputError: this is no git checkout, or git knows no such revision.
    """
    with TemporaryDirectory(prefix="nfsd3d-bench-") as temporary:
        folder = Path(temporary) / "tree"
        _git("worktree", "add", "--detach", str(folder), f"{revision}^{{commit}}", revision=revision)
        try:
            yield folder
        finally:
            _git("worktree", "remove", "--force", str(folder), revision=revision)


def _git(*arguments: str, revision: str) -> None:
    try:
        subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True)
    except OSError as error:
        raise InputError(f"{_OPTION} {revision}: git cannot be run ({error.strerror}); install it") from error
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise InputError(
            f"{_OPTION} {revision}: no such revision of {ROOT} ({reason}); give a commit, tag or branch"
        ) from error


def measure(
    names: tuple[str, ...], other: Path, settings: Settings, on_measured: Callable[[], None] = lambda: None
) -> list[Figure]:
    """The figures of the `MEASUREMENTS` ``names``, of this tree and of that in the folder ``other``.

    "step": milliseconds of a training step of the demo, and of its parts that both trees know by the same name.
    "start": seconds from the command until the metrics of the first step are on disk. "run": seconds and peak memory of
    the demo's scene with the recipe and ``steps``. "demo": of what each tree's ``make demo`` runs. "export" and
    "export-512": seconds and peak memory of a mesh of 256³ cells with a texture of 1024², and of 512³ with 2048²; of
    the same scene, trained by the other tree. The trees take turns, and begin in turns; a first round, in which kernels
    are compiled, does not count. ``on_measured`` is called after each command.

    Raises:
        InputError: a command failed.
    """
    ours, theirs = (Tree(folder, settings.threads, _OPTION) for folder in (ROOT, other))
    found: dict[tuple[str, str], tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    with TemporaryDirectory(prefix="nfsd3d-bench-") as temporary:
        scene = Path(temporary) / "scene"
        if any(name in _EXPORTS for name in names):
            theirs.run(*demo(scene, settings.steps, "export.mesh=false"))
        for round_ in range(-WARMUP_ROUNDS, settings.rounds):
            for name in names:
                for side in ((0, 1), (1, 0))[round_ % 2]:
                    folder = Path(temporary) / f"{name}-{round_}-{side}"
                    values = _measured(name, (ours, theirs)[side], folder, scene, settings)
                    for key, value in values.items() if round_ >= 0 else ():
                        found[key][side].append(value)
                    on_measured()
    return [
        Figure(name, unit, tuple(our_values), tuple(their_values))
        for (name, unit), (our_values, their_values) in found.items()
        if len(our_values) == len(their_values)
    ]


def _measured(name: str, tree: Tree, folder: Path, scene: Path, settings: Settings) -> dict[tuple[str, str], float]:
    """The values of one measurement of one tree, by name and unit."""
    if name == "step":
        return _step(tree, folder, settings)
    if name == "start":
        return {("start", "s"): _start(tree, folder)}
    if name == "run":
        seconds, memory = tree.run(*demo(folder, settings.steps))
    elif name == "demo":
        seconds, memory = tree.run(*demo(folder, None, config=tree.demo_config))
    else:
        cells, texels = _EXPORTS[name]
        sizes = ("--resolution", str(cells), "--texture-size", str(texels), "--formats", "glb")
        seconds, memory = tree.run("scripts/export_mesh.py", str(scene), *sizes, "--output", str(folder))
    return {(name, "s"): seconds, (f"{name}, peak memory", "MB"): memory}


def _step(tree: Tree, folder: Path, settings: Settings) -> dict[tuple[str, str], float]:
    path = folder / "step.json"
    size = ("--steps", str(settings.steps), "--threads", str(settings.threads))
    tree.run("scripts/bench.py", "--only", "step", "--machine", "cpu", *size, "--json", str(path))
    timing = json.loads(path.read_text(encoding="utf-8"))["step"]
    parts = {(f"step: {part}", "ms"): value for part, value in timing["milliseconds"].items()}
    return {("step", "ms"): 1e3 / timing["steps_per_second"], **parts}


def _start(tree: Tree, run_dir: Path) -> float:
    """Seconds until the first line of metrics; the run is ended after it."""
    metrics, begin = run_dir / "metrics.jsonl", time.perf_counter()
    arguments = demo(run_dir, 1000, "train.log_every=1")
    with tree.started(*arguments) as (process, output):
        while not (metrics.is_file() and metrics.stat().st_size):
            if process.poll() is not None:
                raise tree.failure(arguments, output)
            time.sleep(_POLL_S)
        return time.perf_counter() - begin
