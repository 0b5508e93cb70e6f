"""``nfsd3d export RUN_DIR``: extracts the mesh of an existing run and writes it in several formats."""

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from nfsd3d.cli.options import (
    Parser,
    add_run_arguments,
    density_or_auto,
    millimetres,
    open_run,
    seconds,
    texture_size,
    triangles,
    whole_number,
    write_numbers,
    writing_to,
)
from nfsd3d.config.schema import values_of
from nfsd3d.errors import InputError
from nfsd3d.runs.files import check_writable
from nfsd3d.settings.export import Placement, check_packages

PLACEMENT = tuple(field.name for field in fields(Placement))


def main(argv: Sequence[str]) -> int:
    """Writes the meshes that ``argv`` asks for, prints their paths, and returns 0.

    Raises:
        InputError: not a run, no such checkpoint or format, a threshold at which there is no surface, or a file that
            cannot be written.
    """
    options = parser().parse_args(argv)
    run = open_run(options)

    from rich.console import Console

    from nfsd3d.export.formats.table import TEXTURED, known_format, write_meshes
    from nfsd3d.export.progress import phase_progress
    from nfsd3d.train.build import mesh_extras

    wanted = run.config.export
    formats = wanted.formats if options.formats is None else options.formats.split(",")
    formats = [known_format(name.strip()) for name in formats]
    names = ("resolution", "threshold", "max_faces", "lods", "texture_size", "normal_map", "unwrap_timeout", *PLACEMENT)
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if given.get("size_mm") == 0:
        given["size_mm"] = None
    if not TEXTURED & set(formats):
        if options.normal_map:
            raise InputError(f"--normal-map: {', '.join(formats)} has none; add glb, obj or usdz to --formats")
        given |= {"texture_size": 0, "normal_map": False}
    settings = replace(wanted, **given)
    if "glb" in formats:
        check_packages((), settings.compress)
    folder = options.output if options.output is not None else run.directory / "mesh"
    with writing_to(folder):  # before the slow extraction
        check_writable(folder)
    with phase_progress(Console(stderr=True), "mesh") as on_progress:
        extracted = run.extract(settings, on_progress)
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        paths = write_meshes(extracted.mesh, folder, formats, mesh_extras(run.config), settings, extracted.lods)
    files, facts = [str(path) for path in paths], extracted.facts
    write_numbers(options.json, {"run": str(run.directory), "step": run.step, "files": files, **facts})
    texture = "vertex colours" if facts["texture_size"] is None else f"a texture of {facts['texture_size']}^2"
    where = ""
    if extracted.density_range is not None:
        low, high = facts["density_range"]
        where = f" at density {facts['threshold']} (the field has {low} to {high})"
    if extracted.mesh.texture is not None and extracted.mesh.texture.normal_map is not None:
        texture += " with a normal map"
    print(f"{facts['faces']} triangles{where}, {texture}")
    if extracted.untextured is not None:
        print(f"no texture{' and no normal map' if settings.normal_map else ''}: {extracted.untextured}")
    print("\n".join(files))
    return 0


def parser() -> argparse.ArgumentParser:
    """The options of ``nfsd3d export``."""
    parser = Parser(
        prog="nfsd3d export",
        description="Extract the mesh of a run. GLB, OBJ and USDZ have a texture and are y-up (front +Z); PLY and 3MF "
        "with vertex colours and STL without any are z-up (front +X). Defaults are those of the run's config.yaml.",
    )
    parser.add_argument("--formats", metavar="LIST", help="comma-separated: glb, obj, ply, stl, 3mf, usdz")
    parser.add_argument(
        "--threshold",
        type=density_or_auto,
        help="density of the surface; or auto: the density at which views show a surface; unseen space is filled",
    )
    parser.add_argument("--resolution", type=whole_number(16, 1024), help="least number of cells per axis")
    parser.add_argument("--max-faces", type=whole_number(100), help="simplify to this many triangles")
    parser.add_argument(
        "--lods",
        type=triangles,
        metavar="LIST",
        help="levels of detail: triangles of further meshes, such as 10000,2000; 0: none",
    )
    parser.add_argument("--texture-size", type=texture_size, help="texels per side, 64 to 4096; 0: vertex colours")
    parser.add_argument(
        "--normal-map",
        action=argparse.BooleanOptionalAction,
        help="also write the directions of the surface before simplification as a texture",
    )
    parser.add_argument(
        "--unwrap-timeout", type=seconds, metavar="SECONDS", help="limit of UV unwrapping; beyond it: vertex colours"
    )
    parser.add_argument(
        "--size-mm", type=millimetres, metavar="MM", help="longest side in millimetres; 0: a unit is a metre"
    )
    words = {
        "units": "of the numbers in OBJ, PLY, STL, 3MF and USDZ; GLB has metres (auto: m, with --size-mm mm)",
        "up": "upward axis of OBJ, PLY, STL and USDZ; GLB has y, 3MF z (auto: y in OBJ and USDZ, z in PLY and STL)",
        "origin": "the world's, the middle of the bounding box, or the middle of its lower face",
        "compress": "of GLB: 16-bit positions (opens in Blender, trimesh, three.js), or meshopt by gltfpack, for "
        "three.js alone",
    }
    for name, text in words.items():
        parser.add_argument(f"--{name}", choices=values_of(f"export.{name}"), help=text)
    add_run_arguments(parser, output="folder for model.* (default: RUN_DIR/mesh)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write files and numbers as JSON")
    return parser
