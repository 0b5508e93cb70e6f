"""Measures how well the meshes of runs agree with the true objects of their prompts, in the world of shapes.

    python scripts/evaluate_mesh.py RUN_DIR... [--against RUN_DIR...] [--sheet FILE.png] [--json FILE] [--workers N]

A run without mesh/model.glb is exported first, at its own settings, and keeps it. Each mesh is compared with the true
object that is fitted to it (`nfsd3d.evaluate.score_mesh`). Prints a line per mesh, then means over prompts with 95 %
intervals; with ``--against`` also the differences at the same prompt and seed, RUN_DIR minus ``--against``. Exits with
1 if a mesh could not be scored, with 2 for wrong input.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from nfsd3d.cli.options import Parser, check_writable, plain, whole_number, write_numbers, writing_to
from nfsd3d.config.compose import load_run_config
from nfsd3d.errors import InputError, print_error
from nfsd3d.jobs.cores import threads, usable_cores

if TYPE_CHECKING:
    from nfsd3d.evaluate.classifier.model import Classifier
    from nfsd3d.evaluate.score_mesh import MeshScore, ScoredMesh
    from nfsd3d.evaluate.true_place import TruePlace
    from nfsd3d.visualize.image_grid import Image

SHEET_VIEWS = (1, 5)
"""The views on the image grid, of the 8 around the object: from 45 and from 225 degrees."""


@dataclass(frozen=True)
class Mesh:
    """A mesh to be scored: the path ``glb`` in the run directory ``run``."""

    run: Path
    glb: Path

    def __str__(self) -> str:
        return str(self.run) if self.glb == Path("mesh/model.glb") else str(self.run / self.glb)


@dataclass(frozen=True)
class Job:
    """The meshes to be scored together, the second one with the place of the first one's truth if ``one_place``."""

    meshes: tuple[Mesh, ...]
    one_place: bool


@dataclass(frozen=True)
class Result:
    """The scores of a job's meshes, and the images of its row on the grid; or the ``error`` that it ended with."""

    scores: tuple[MeshScore, ...] = ()
    row: tuple[Image, ...] = ()
    error: str = ""


def score(job: Job) -> Result:
    """Scores a job's meshes; in a process of its own with ``--workers``."""
    from nfsd3d.evaluate.score_mesh import score_run_mesh

    found: list[ScoredMesh] = []
    place: TruePlace | None = None
    for mesh in job.meshes:
        try:
            found.append(score_run_mesh(mesh.run, _classifier(), mesh.glb, place))
        except InputError as error:
            return Result(error=f"{mesh}: {' '.join(str(error).split())}")
        place = found[0].score.place if job.one_place else None
    return Result(tuple(each.score for each in found), tuple(_row(found)))


@cache
def _classifier() -> Classifier:
    from nfsd3d.evaluate.classifier.model import Classifier

    return Classifier.load()


def _row(found: Sequence[ScoredMesh]) -> Iterator[Image]:
    from nfsd3d.visualize.images import to_uint8

    for index in SHEET_VIEWS:
        yield to_uint8(found[0].true.image[index])
        yield from (to_uint8(each.mesh.image[index]) for each in found)


@contextmanager
def results(jobs: Sequence[Job], workers: int) -> Iterator[Iterator[Result]]:
    """The results of ``jobs``, in order, from ``workers`` processes that share the cores; from this one if it is 1."""
    if workers == 1:
        yield map(score, jobs)
        return
    before = dict(os.environ)
    os.environ.update(threads(max(1, len(usable_cores()) // workers)))  # which the processes inherit
    try:
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            yield pool.map(score, jobs)
    finally:
        os.environ.clear()
        os.environ.update(before)


def main(argv: Sequence[str] | None = None) -> int:
    """Scores the runs that ``argv`` names; returns 0, or 1 if a mesh could not be scored.

    Raises:
        InputError: not a run, a prompt that is not one of the world of shapes, a run without its pair, or a file that
            cannot be written.
    """
    options = parser().parse_args(argv)
    for path, name in ((options.sheet, "--sheet"), (options.json, "--json")):
        check_writable(path, name)
    jobs = jobs_of(options)

    from nfsd3d.evaluate.mesh_table import differences, mesh_table, summarize

    sets = ("runs", "against")[: len(jobs[0].meshes)]
    scores: dict[str, dict[str, MeshScore]] = {name: {} for name in sets}
    failed: dict[str, str] = {}
    rows: dict[str, tuple[Image, ...]] = {}
    with results(jobs, min(options.workers, len(jobs))) as found:
        for number, (job, result) in enumerate(zip(jobs, found, strict=True), 1):
            if result.error:
                failed[str(job.meshes[0])] = result.error
                print(f"[{number}/{len(jobs)}] not scored: {result.error}", file=sys.stderr, flush=True)
                continue
            rows[str(job.meshes[0])] = result.row
            for name, mesh, each in zip(sets, job.meshes, result.scores, strict=True):
                scores[name][str(mesh)] = each
                print(f"[{number}/{len(jobs)}] {mesh}: {each}", flush=True)
    groups = {name: list(group.values()) for name, group in scores.items()}
    pairs = list(zip(*groups.values(), strict=True)) if len(sets) > 1 else []
    numbers: dict[str, object] = {**scores, "means": {name: summarize(group) for name, group in groups.items()}}
    if rows:
        print(f"\n{mesh_table(groups, pairs)}")
    if pairs:
        numbers["differences"] = differences(pairs)
    if failed:
        print(f"not scored: {len(failed)} of {len(jobs)}")
    write_numbers(options.json, plain({**numbers, "not_scored": failed}))
    if options.sheet is not None and rows:
        write_sheet(options.sheet, rows, sets)
    return int(bool(failed))


def jobs_of(options: argparse.Namespace) -> list[Job]:
    """The jobs that the options ask for, after a look at the configurations.

    Raises:
        InputError: see :func:`main`.
    """
    against = options.against or ([] if options.against_mesh is None else options.run_dirs)
    if options.one_place and not against:
        raise InputError("--one-place: is for two meshes; give --against or --against-mesh, or leave it out")
    for directory in (*options.run_dirs, *against):  # wrong paths fail before the slow imports
        load_run_config(directory)
    from nfsd3d.evaluate.mesh_table import pair_runs
    from nfsd3d.evaluate.score_mesh import check_run

    if not against:
        for directory in options.run_dirs:
            check_run(directory)
        return [Job((Mesh(directory, options.mesh),), False) for directory in options.run_dirs]
    other = options.mesh if options.against_mesh is None else options.against_mesh
    return [
        Job((Mesh(one, options.mesh), Mesh(two, other)), options.one_place)
        for one, two in pair_runs(options.run_dirs, against)
    ]


def write_sheet(path: Path, rows: dict[str, tuple[Image, ...]], sets: Sequence[str]) -> None:
    """Writes an image grid: a row per run with its true view and the views of its meshes, from two azimuths."""
    from nfsd3d.visualize.image_grid import grid, write_png

    names = ["mesh", "against"][: len(sets)]
    labels = [f"{45 * index}°: {name}" for index in SHEET_VIEWS for name in ("true", *names)]
    with writing_to(path, "--sheet"):
        write_png(
            path, grid(list(rows.values()), column_labels=labels, row_labels=[Path(row).name for row in rows], gap=2)
        )
    print(path)


def parser() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = Parser(
        prog="evaluate_mesh.py",
        description="Measure how well the meshes of runs agree with the true objects of their prompts: PSNR of unlit "
        "views, silhouettes, volume, and what a classifier sees. For prompts of the world of shapes.",
    )
    parser.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN_DIR")
    parser.add_argument(
        "--against", type=Path, nargs="+", metavar="RUN_DIR", help="runs of the same prompts and seeds to compare with"
    )
    parser.add_argument(
        "--mesh",
        type=Path,
        default=Path("mesh/model.glb"),
        metavar="GLB",
        help="the mesh's path in each RUN_DIR (default: mesh/model.glb, which is exported if it is not there)",
    )
    parser.add_argument(
        "--against-mesh", type=Path, metavar="GLB", help="its path in those of --against (default: that of --mesh)"
    )
    parser.add_argument(
        "--one-place",
        action="store_true",
        help="compare both meshes with the true object as it is fitted to the first one (default: each to its own fit)",
    )
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="write true and mesh views as one image grid")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the numbers as JSON")
    parser.add_argument("--workers", type=whole_number(1), default=1, metavar="N", help="processes (default: 1)")
    return parser


if __name__ == "__main__":
    try:
        code = main()
    except InputError as error:
        print_error(error)
        code = 2
    sys.exit(code)
