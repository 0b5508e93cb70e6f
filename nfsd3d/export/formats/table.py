"""The formats, and writing a mesh in one or several of them."""

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from nfsd3d.errors import InputError
from nfsd3d.export.formats.base import Extras, Files
from nfsd3d.export.formats.placement import Placed, Up, place
from nfsd3d.generators.mesh.surface import SurfaceMesh
from nfsd3d.runs.files import write_bytes
from nfsd3d.settings.export import Placement, check_packages


@dataclass(frozen=True)
class Format:
    """A mesh file format.

    ``module`` holds the ``function`` (placed mesh, stem of the file's name, extras) -> files. ``up``: its upward axis,
    which is the usual one if the format leaves it open (``turns``). ``unit``: the one that it prescribes, None if it
    names none, or can name any.
    """

    module: str
    function: str
    up: Up
    textured: bool = False
    turns: bool = False
    unit: str | None = None

    def files(self, mesh: SurfaceMesh, stem: str, extras: Extras, placement: Placement) -> Files:
        """The contents of the files of ``mesh``."""
        placed = place(mesh, placement, self.up, self.unit, turns=self.turns)
        made = getattr(importlib.import_module(f"nfsd3d.export.formats.{self.module}"), self.function)
        return cast(Callable[[Placed, str, Extras], Files], made)(placed, stem, extras)


FORMATS: dict[str, Format] = {
    "glb": Format("glb", "glb_files", "y", textured=True, unit="m"),
    "obj": Format("obj", "obj_files", "y", textured=True, turns=True),
    "ply": Format("ply", "ply_files", "z", turns=True),
    "stl": Format("stl", "stl_files", "z", turns=True),
    "3mf": Format("threemf", "threemf_files", "z"),
    "usdz": Format("usdz", "usdz_files", "y", textured=True, turns=True),
}

WORLD = Placement()
"""The mesh as it is in the world."""

TEXTURED = frozenset(name for name, row in FORMATS.items() if row.textured)
"""The formats that support a texture."""


def write_mesh(mesh: SurfaceMesh, path: Path, extras: Extras, placement: Placement = WORLD) -> list[Path]:
    """Writes ``mesh`` in the format of ``path``'s suffix, each file atomically, with ``extras`` as metadata.

    Returns ``path`` and the files written beside it: the material and texture of an OBJ.

    Raises:
        InputError: the suffix is no known format, or a package for it is missing.
    """
    files = FORMATS[known_format(path.suffix.lstrip("."))].files(mesh, path.stem, extras, placement)
    # The requested file, under exactly the requested name, comes last, after the files it refers to.
    *beside, (_, content) = files.items()
    for name, part in beside:
        write_bytes(path.with_name(name), part)
    write_bytes(path, content)
    return [path, *(path.with_name(name) for name, _ in beside)]


def write_meshes(
    mesh: SurfaceMesh,
    folder: Path,
    formats: Sequence[str],
    extras: Extras,
    placement: Placement = WORLD,
    lods: Sequence[SurfaceMesh] = (),
) -> list[Path]:
    """Writes ``model.<format>`` for every format into ``folder``, which is created; returns the paths of all files.

    Levels of detail are ``model-lod1.<format>`` and so on.

    Raises:
        InputError: a format is unknown, or a package for it is missing; nothing is written.
    """
    suffixes = [known_format(name) for name in formats]
    folder.mkdir(exist_ok=True)
    levels = {"model": mesh, **{f"model-lod{number}": level for number, level in enumerate(lods, 1)}}
    for path in folder.glob("model-lod*.*"):  # of an earlier export with more levels
        if path.stem not in levels and re.fullmatch(r"model-lod\d+", path.stem):
            path.unlink()
    return [
        path
        for stem, level in levels.items()
        for suffix in suffixes
        for path in write_mesh(level, folder / f"{stem}.{suffix}", extras, placement)
    ]


def known_format(name: str) -> str:
    """``name`` in lower case.

    Raises:
        InputError: the format is unknown, or the package that writes it is not installed.
    """
    if name.lower() not in FORMATS:
        raise InputError(f"--formats, export.formats: {name!r} is not known: choose from {', '.join(FORMATS)}")
    check_packages([name.lower()])
    return name.lower()
