"""``nfsd3d check-mesh RUN_DIR``: compares exported meshes with the NeRF's views and opens them in other programs."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from nfsd3d.cli.options import Parser, plain, write_numbers
from nfsd3d.errors import InputError
from nfsd3d.settings.paths import user_cache

if TYPE_CHECKING:
    from nfsd3d.api import Run
    from nfsd3d.evaluate.programs.table import Opened
    from nfsd3d.generators.mesh.surface import SurfaceMesh

TOOLS = user_cache() / "mesh-tools"
LEAST_PSNR, LEAST_SILHOUETTE_IOU = 22.0, 0.95
"""Least mean PSNR in dB, and silhouette IoU, between views of the mesh and of the NeRF."""


def main(argv: Sequence[str]) -> int:
    """Prints one line of JSON per run; returns 0, or 1 if a mesh is open, unlike the NeRF, or invalid.

    Raises:
        InputError: no run or no mesh, or a program that is not installed.
    """
    options = parser().parse_args(argv)
    if not options.run_dirs and not options.install:
        raise InputError("RUN_DIR: give one or several, or --install")
    from nfsd3d.evaluate import mesh_files

    if options.install:
        mesh_files.install_npm_packages(options.tools)
    elif (options.validator or options.browser) and not (options.tools / "node_modules").is_dir():
        raise InputError(f"--tools {options.tools}: nothing is there; add --install, which puts npm packages there")
    options.output.mkdir(parents=True, exist_ok=True)
    names = mesh_files.image_names(options.run_dirs)
    results = [
        _check(run_dir, options.output / name, options) for run_dir, name in zip(options.run_dirs, names, strict=True)
    ]
    write_numbers(options.json, results)
    return 0 if all(result["ok"] for result in results) else 1


def _check(run_dir: Path, name: Path, options: argparse.Namespace) -> dict[str, object]:
    """The findings about one run's mesh, for JSON; the files of its images begin with ``name``."""
    from nfsd3d.api import load_run
    from nfsd3d.evaluate import mesh_files
    from nfsd3d.export.formats.read_glb import read_glb

    run = load_run(run_dir)
    glb = mesh_files.find_glb(options.folder or run_dir / "mesh")
    mesh = read_glb(glb)
    with mesh_files.in_the_world(glb) as shown:
        result = plain(_findings(run, mesh, glb, shown, name, options))  # a PSNR may be infinite, which JSON lacks
    print(json.dumps(result, allow_nan=False), flush=True)
    return dict(result)


def _findings(
    run: Run, mesh: SurfaceMesh, glb: Path, shown: Path, name: Path, options: argparse.Namespace
) -> dict[str, object]:
    """What is found in the file ``glb``; ``shown`` is the one in world coordinates, for pictures."""
    from nfsd3d.evaluate import mesh_files
    from nfsd3d.evaluate.programs.browser import screenshot
    from nfsd3d.train.build import viewing_cameras
    from nfsd3d.visualize.image_grid import write_png

    run_dir, shape = run.directory, mesh_files.check_shape(shown)
    result: dict[str, object] = {"run": str(run_dir), "shape": shape}
    cameras = viewing_cameras(run.config, 8, 256)
    agreement, image = mesh_files.compare_with_views(run.generator, mesh, cameras)
    write_png(name.with_name(f"{name.name}-views.png"), image)
    result["views"] = {key: round(value, 4) for key, value in asdict(agreement).items()}
    ok = shape["watertight"] and shape["consistent"] and shape["volume"] > 0
    ok = ok and agreement.psnr >= LEAST_PSNR and agreement.silhouette_iou >= LEAST_SILHOUETTE_IOU
    if options.validator:
        result["validator"] = report = mesh_files.validate_glb(glb, options.tools)
        ok = ok and report["errors"] == report["warnings"] == 0
    if options.browser and (run_dir / "report.html").exists():
        image_path = name.with_name(f"{name.name}-report.png")
        screenshot(run_dir / "report.html", image_path, options.chromium, (1100, 2600))
    if options.browser or options.blender or options.assimp or options.slicer:
        opened = _opened(mesh, glb.parent, name, options)
        result["programs"] = [asdict(row) for row in opened]
        ok = ok and all(row.right for row in opened if row.file == glb.name)
    result["ok"] = ok
    return result


def _opened(mesh: SurfaceMesh, folder: Path, name: Path, options: argparse.Namespace) -> list[Opened]:
    """What other programs make of the files in ``folder``; a table and pictures are written beside ``name``."""
    from nfsd3d.evaluate.programs.table import Programs, open_all, sheet, table_of
    from nfsd3d.runs.files import write_text
    from nfsd3d.visualize.image_grid import write_png

    browser = options.chromium if options.browser else None
    programs = Programs(browser, options.tools, options.blender, options.assimp, options.slicer)
    rows = []
    for row, image in open_all(folder, mesh, programs):
        print(f"{row.file}, {row.program}: {row.failure or 'opens'}", file=sys.stderr, flush=True)
        rows.append((row, image))
    if any(image is not None for _, image in rows):
        write_png(name.with_name(f"{name.name}-programs.png"), sheet(rows))
    opened = [row for row, _ in rows]
    write_text(name.with_name(f"{name.name}-programs.md"), table_of(opened) + "\n")
    return opened


def parser() -> argparse.ArgumentParser:
    """The options of ``nfsd3d check-mesh``."""
    parser = Parser(
        prog="nfsd3d check-mesh",
        description="Reload each run's mesh/model.glb and compare it with the run's own views; optionally open it, and "
        "what else is there as model*.*, in other programs and in trimesh: its size, which way is up, its colours. The "
        "exit code is 1 if model.glb is wrong anywhere; how the other files fare is in the table.",
    )
    parser.add_argument("run_dirs", type=Path, nargs="*", metavar="RUN_DIR")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="folder of model.glb (default: RUN_DIR/mesh)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", default=Path("outputs/mesh-checks"), help="folder for images"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results as JSON")
    parser.add_argument("--validator", action="store_true", help="run the npm package gltf-validator")
    parser.add_argument(
        "--browser",
        action="store_true",
        help="open the meshes in three.js and model-viewer, and take a screenshot of report.html",
    )
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium", help="the browser's executable")
    parser.add_argument("--blender", type=Path, metavar="PYTHON", help="open them in Blender: a Python that has bpy")
    parser.add_argument("--assimp", type=Path, metavar="PATH", help="open them in assimp, by its command-line program")
    parser.add_argument("--slicer", type=Path, metavar="PATH", help="open them in PrusaSlicer, by its program")
    parser.add_argument("--tools", type=Path, metavar="DIR", default=TOOLS, help="folder of the npm packages")
    parser.add_argument("--install", action="store_true", help="install the npm packages into --tools first")
    return parser
