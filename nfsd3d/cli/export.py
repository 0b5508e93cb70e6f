"""``nfsd3d export RUN_DIR``: extracts the mesh of an existing run and writes it in several formats."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nfsd3d.cli.options import (
    Parser,
    add_run_arguments,
    density_or_auto,
    open_run,
    seconds,
    texture_size,
    whole_number,
    write_numbers,
    writing_to,
)
from nfsd3d.runs.files import check_writable


def main(argv: Sequence[str]) -> int:
    """Writes the meshes that ``argv`` asks for, prints their paths, and returns 0.

    Raises:
        InputError: not a run, no such checkpoint or format, a threshold at which there is no surface, or a file that
            cannot be written.
    """
    options = parser().parse_args(argv)
    run = open_run(options)

    from rich.console import Console

    from nfsd3d.export.progress import phase_progress
    from nfsd3d.export.write import TEXTURED, known_format, write_meshes
    from nfsd3d.train.build import mesh_extras

    wanted = run.config.export
    formats = wanted.formats if options.formats is None else options.formats.split(",")
    formats = [known_format(name.strip()) for name in formats]
    names = ("resolution", "threshold", "max_faces", "texture_size", "unwrap_timeout")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if not TEXTURED & set(formats):
        given["texture_size"] = 0
    folder = options.output if options.output is not None else run.directory / "mesh"
    with writing_to(folder):  # before the slow extraction
        check_writable(folder)
    with phase_progress(Console(stderr=True), "mesh") as on_progress:
        extracted = run.extract(replace(wanted, **given), on_progress)
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        paths = write_meshes(extracted.mesh, folder, formats, mesh_extras(run.config))
    files, facts = [str(path) for path in paths], extracted.facts
    write_numbers(options.json, {"run": str(run.directory), "step": run.step, "files": files, **facts})
    low, high = (round(density, 4) for density in extracted.density_range)
    texture = "vertex colours" if facts["texture_size"] is None else f"a texture of {facts['texture_size']}^2"
    print(f"{facts['faces']} triangles at density {facts['threshold']} (the field has {low} to {high}), {texture}")
    if extracted.untextured is not None:
        print(f"no texture: {extracted.untextured}")
    print("\n".join(files))
    return 0


def parser() -> argparse.ArgumentParser:
    """The options of ``nfsd3d export``."""
    parser = Parser(
        prog="nfsd3d export",
        description="Extract the mesh of a run. GLB and OBJ have a texture and are y-up (front +Z); PLY with vertex "
        "colours and STL without any are z-up (front +X). A unit of the file is a unit of the world. Defaults are "
        "those of the run's config.yaml.",
    )
    parser.add_argument("--formats", metavar="LIST", help="comma-separated: glb, obj, ply, stl")
    parser.add_argument(
        "--threshold",
        type=density_or_auto,
        help="density of the surface; or auto: the density at which views show a surface; unseen space is filled",
    )
    parser.add_argument("--resolution", type=whole_number(16, 1024), help="least number of cells per axis")
    parser.add_argument("--max-faces", type=whole_number(100), help="simplify to this many triangles")
    parser.add_argument("--texture-size", type=texture_size, help="texels per side, 64 to 4096; 0: vertex colours")
    parser.add_argument(
        "--unwrap-timeout", type=seconds, metavar="SECONDS", help="limit of UV unwrapping; beyond it: vertex colours"
    )
    add_run_arguments(parser, output="folder for model.* (default: RUN_DIR/mesh)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write files and numbers as JSON")
    return parser
