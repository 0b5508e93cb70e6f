"""Opens the mesh files of a folder in all the programs that are there, and puts what they show into a table."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from numpy.typing import NDArray

from nfsd3d.errors import InputError
from nfsd3d.evaluate.programs import blender, browser, converters
from nfsd3d.evaluate.programs.stage import Seen, drawing, look
from nfsd3d.generators.mesh.surface import SurfaceMesh
from nfsd3d.visualize.image_grid import Image, grid

FORMATS = ("glb", "obj", "ply", "stl", "3mf", "usdz")
COLORLESS = frozenset({"stl"})

LEAST_IOU, LARGEST_COLOR_ERROR = 0.97, 10.0
"""Of a file that is right: of the outlines, and of 255. Programs smooth outlines and filter textures each in their own
way (up to 4 with a pattern of dots); linear colours that are taken for sRGB differ by 50."""

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Programs:
    """Where the programs are; None for those that are not asked for."""

    chromium: str | None = None
    """The browser, for three.js and model-viewer."""
    tools: Path | None = None
    """The folder of the npm packages."""
    blender: Path | None = None
    """A Python that has bpy."""
    assimp: Path | None = None
    slicer: Path | None = None
    """PrusaSlicer."""


@dataclass(frozen=True)
class Opened:
    """A file in a program. ``size``: its bounding box in the program's units and axes.

    ``up`` and ``front``: the program's axes along which the object's lie; ``upright`` if that is the program's own
    upward axis. ``color_error`` and ``silhouette_iou`` as in :class:`.stage.Seen`. ``note``: what the program lacks.
    ``failure``: why it cannot open the file; then there is nothing else.
    """

    file: str
    program: str
    size: list[float] | None = None
    up: str | None = None
    front: str | None = None
    upright: bool | None = None
    color_error: float | None = None
    silhouette_iou: float | None = None
    note: str = ""
    failure: str | None = None

    @property
    def right(self) -> bool:
        """Whether the program opens the file, upright and in its colours, as far as it can say."""
        if self.failure is not None:
            return False
        lit = self.program.startswith("model-viewer")  # its light changes colours
        outlines = self.silhouette_iou is None or self.silhouette_iou >= LEAST_IOU
        colors = self.color_error is None or lit or self.color_error <= LARGEST_COLOR_ERROR
        return outlines and colors and self.upright is not False


def mesh_files_in(folder: Path) -> list[Path]:
    """The files ``model*.*`` of the known formats in ``folder``, without levels of detail.

    Raises:
        InputError: there is none.
    """
    found = [
        path
        for suffix in FORMATS
        for path in sorted(folder.glob(f"model*.{suffix}"))
        if not path.stem.startswith("model-lod")
    ]
    if not found:
        raise InputError(f"{folder}: no mesh is there; write some with `nfsd3d export RUN_DIR --formats glb,obj,...`")
    return found


def open_all(folder: Path, mesh: SurfaceMesh, programs: Programs) -> Iterator[tuple[Opened, Image | None]]:
    """Each file of ``folder`` in each program that reads its format, and the program's picture beside the project's.

    ``mesh`` is what they should show, in world axes.
    """
    for path in mesh_files_in(folder):
        for name, opener in _openers(path.suffix[1:], programs):
            try:
                yield opener(path, mesh)
            except InputError as error:
                yield Opened(path.name, name, failure=str(error).partition(": ")[2] or str(error)), None
            except Exception as error:  # of a damaged file that a program made something of
                yield Opened(path.name, name, failure=f"{type(error).__name__}: {error}"), None


def sheet(rows: Sequence[tuple[Opened, Image | None]]) -> Image:
    """A row for each file, a column for each program: what the program shows, and the project's own drawing."""
    files = list(dict.fromkeys(row.file for row, _ in rows))
    programs = list(dict.fromkeys(row.program for row, image in rows if image is not None))
    shown = {(row.file, row.program): image for row, image in rows}
    return grid(
        [[shown.get((file, program)) for program in programs] for file in files],
        column_labels=programs,
        row_labels=files,
        gap=4,
    )


def table_of(rows: Sequence[Opened]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| file | program | size | up, front | colour error of 255 | outlines' IoU | |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.failure is not None:
            lines.append(f"| {row.file} | {row.program} | | | | | {_cell(row.failure)} |")
            continue
        size = " x ".join(f"{side:.3g}" for side in row.size or ())
        way = "" if row.up is None else f"{row.up}, {row.front}{'' if row.upright else ' (not upright)'}"
        error = "" if row.color_error is None else f"{row.color_error:.1f}"
        iou = "" if row.silhouette_iou is None else f"{row.silhouette_iou:.3f}"
        lines.append(f"| {row.file} | {row.program} | {size} | {way} | {error} | {iou} | {row.note} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """The text on one line, without what ends a cell."""
    return " ".join(text.split()).replace("|", "\\|")


_Opener = Callable[[Path, SurfaceMesh], tuple[Opened, Image | None]]


def _openers(suffix: str, programs: Programs) -> Iterator[tuple[str, _Opener]]:
    """The programs that read files of ``suffix``, by name."""
    chromium, tools = programs.chromium, programs.tools
    if chromium is not None and tools is not None:
        if suffix in browser.THREE_FORMATS:
            yield (
                "three.js",
                lambda path, mesh: _shown(
                    path, mesh, lambda picture: browser.open_in_three(path, picture, tools, chromium), _in_three
                ),
            )
        if suffix in browser.VIEWER_FORMATS:
            yield (
                "model-viewer",
                lambda path, mesh: _shown(
                    path, mesh, lambda picture: browser.open_in_model_viewer(path, picture, tools, chromium), _in_three
                ),
            )
    python = programs.blender
    if python is not None and suffix in blender.FORMATS:
        yield (
            "Blender",
            lambda path, mesh: _shown(
                path, mesh, lambda picture: blender.open_in_blender(path, picture, python), blender.axis_in_blender
            ),
        )
    assimp = programs.assimp
    if assimp is not None and suffix in converters.ASSIMP_FORMATS:
        yield "assimp", lambda path, mesh: _converted(path, mesh, converters.open_in_assimp(path, assimp))
    if suffix in converters.TRIMESH_FORMATS:
        yield "trimesh", lambda path, mesh: _converted(path, mesh, converters.open_in_trimesh(path))
    slicer = programs.slicer
    if slicer is not None and suffix in converters.SLICER_FORMATS:
        yield "PrusaSlicer", lambda path, mesh: _measured(path, converters.measure_in_slicer(path, slicer))


def _in_three(axis: str) -> str:
    return axis


def _shown(
    path: Path, mesh: SurfaceMesh, program: Callable[[Path], dict[str, object]], axis: Callable[[str], str]
) -> tuple[Opened, Image]:
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.png"
        found = program(picture)
        seen = look(_with_alpha(imageio.imread(picture)), mesh, colored=path.suffix[1:] not in COLORLESS)
    return _opened(path, found, seen, axis), seen.pictures


def _converted(path: Path, mesh: SurfaceMesh, given: tuple[dict[str, object], SurfaceMesh]) -> tuple[Opened, Image]:
    found, converted = given
    seen = look(drawing(converted), mesh, colored=path.suffix[1:] not in COLORLESS)
    return _opened(path, found, seen, _in_three), seen.pictures


def _measured(path: Path, found: dict[str, object]) -> tuple[Opened, None]:
    return Opened(path.name, str(found["program"]), _numbers(found["size"])), None


def _opened(path: Path, found: dict[str, object], seen: Seen, axis: Callable[[str], str]) -> Opened:
    return Opened(
        path.name,
        str(found["program"]),
        _numbers(found["size"]),
        axis(seen.up),
        axis(seen.front),
        seen.up == "+y",
        None if path.suffix[1:] in COLORLESS else seen.color_error,
        seen.silhouette_iou,
        note="" if found.get("material", True) else "brings no material",
    )


def _numbers(values: object) -> list[float]:
    assert isinstance(values, list)
    return [round(float(value), 6) for value in values]


def _with_alpha(picture: Picture) -> Picture:
    if picture.shape[-1] == 4:
        return picture
    return np.concatenate([picture, np.full_like(picture[..., :1], 255)], axis=-1)
