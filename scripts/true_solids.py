"""Writes the true objects of prompts of the world of shapes as gray GLB meshes, to be textured.

    python scripts/true_solids.py FOLDER [--suite FILE.yaml]

A file is named after its prompt: ``a-white-mug.glb``. Prints one line a file: the file, and the prompt.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import yaml

from nfsd3d.cli.options import Parser, writing_to
from nfsd3d.config.compose import compose
from nfsd3d.errors import InputError, print_error
from nfsd3d.evaluate.ground_truth import composition_of
from nfsd3d.export.formats.table import write_mesh
from nfsd3d.export.isosurface import extract_surface, outward_normals
from nfsd3d.export.level_set import LevelSet, sample_density
from nfsd3d.export.simplify import simplify
from nfsd3d.generators.mesh.surface import SurfaceMesh
from nfsd3d.shapes.world.objects import OBJECTS

SUITE = Path(__file__).parent / "suites" / "nfsd.yaml"
CELLS = 160
"""Cells per axis of the grid on which the surface is found."""

SHARPNESS = 20.0
"""Logarithmic fall of the density over a world unit of distance, for marching cubes."""

TRIANGLES = 20_000
GRAY = 0.5


def true_solid(name: str) -> SurfaceMesh:
    """The surface of the object ``name``, gray, in the world's pose."""
    shape = OBJECTS[name]

    def density(points: torch.Tensor) -> torch.Tensor:
        return torch.exp(-SHARPNESS * shape.distance(points))

    surface = extract_surface(LevelSet(density, 1.0, None, 1.0), sample_density(density, 1.0, CELLS + 1))
    surface = simplify(surface, TRIANGLES)
    normals = outward_normals(surface.vertices, surface.faces, np.zeros_like(surface.vertices))
    return SurfaceMesh(surface.vertices, surface.faces, normals, np.full_like(surface.vertices, GRAY))


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the meshes of a suite's prompts; returns 0.

    Raises:
        InputError: not a suite, a prompt that is not one of the world of shapes, or a folder that cannot be written.
    """
    options = parser().parse_args(argv)
    try:
        prompts = yaml.safe_load(options.suite.read_text(encoding="utf-8"))["prompts"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(f"--suite {options.suite}: is no suite with prompts ({error})") from error
    export = compose("nfsd", ["prompt=x", "export.texture_size=0"]).export
    for prompt in prompts:
        path = options.folder / f"{prompt.replace(' ', '-')}.glb"
        mesh = true_solid(composition_of(prompt).object)
        with writing_to(options.folder):
            options.folder.mkdir(parents=True, exist_ok=True)
            write_mesh(mesh, path, {}, export)
        print(f"{path}  {prompt}", flush=True)
    return 0


def parser() -> argparse.ArgumentParser:
    """The options of the script."""
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="for the meshes")
    parser.add_argument("--suite", type=Path, default=SUITE, metavar="FILE.yaml", help=f"(default: {SUITE.name})")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print_error(error)
        sys.exit(2)
