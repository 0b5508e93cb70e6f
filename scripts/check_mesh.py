"""Checks exported meshes: ``python scripts/check_mesh.py RUN_DIR... [--blender PYTHON] [--browser] [--validator]``.

Each run's ``mesh/model.glb``, or the one in ``--folder``, is reloaded and compared with the field's own views; the
options add Khronos' validator, three.js in a browser, and Blender. ``--install`` puts npm packages into ``--tools``.
"""

import argparse
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from nfsd3d.api import load_run
from nfsd3d.cli.options import plain
from nfsd3d.errors import InputError
from nfsd3d.evaluate import mesh_files
from nfsd3d.runs.files import write_json
from nfsd3d.train.build import viewing_cameras
from nfsd3d.visualize.image_grid import write_png

TOOLS = Path.home() / ".cache" / "nfsd3d" / "mesh-tools"
LEAST_PSNR, LEAST_SILHOUETTE_IOU = 22.0, 0.95
"""What a mesh's views must have in common with the field's: decibels, and intersection over union, on average."""


def main() -> int:
    """Prints one line of JSON per run; returns 0, or 1 if a mesh is open, unlike the field, or refused."""
    options = _parser().parse_args()
    if not options.run_dirs and not options.install:
        raise InputError("RUN_DIR: give one or several, or --install")
    if options.install:
        mesh_files.install_npm_packages(options.tools)
    elif (options.validator or options.browser) and not options.tools.is_dir():
        raise InputError(f"--tools {options.tools}: no such folder; add --install, which puts the npm packages there")
    options.output.mkdir(parents=True, exist_ok=True)
    names = mesh_files.picture_names(options.run_dirs)
    results = [check(run_dir, name, options) for run_dir, name in zip(options.run_dirs, names, strict=True)]
    if options.json is not None:
        write_json(options.json, results)
    return 0 if all(result["ok"] for result in results) else 1


def check(run_dir: Path, picture_name: str, options: argparse.Namespace) -> dict:
    """All that is found about one run's mesh, for JSON; pictures begin with ``picture_name``.

    Raises:
        InputError: no run or no mesh, or a program that is not there.
    """
    run = load_run(run_dir)
    glb = mesh_files.find_glb(options.folder or run_dir / "mesh")
    name = options.output / picture_name
    result = {"run": str(run_dir), "shape": mesh_files.check_shape(glb)}
    cameras = viewing_cameras(run.config, 8, 256)
    agreement, picture = mesh_files.compare_with_views(run.generator, mesh_files.read_glb(glb), cameras)
    write_png(name.with_name(f"{name.name}-views.png"), picture)
    result["views"] = {key: round(value, 4) for key, value in asdict(agreement).items()}
    ok = result["shape"]["watertight"] and result["shape"]["consistent"] and result["shape"]["volume"] > 0
    ok = ok and agreement.psnr >= LEAST_PSNR and agreement.silhouette_iou >= LEAST_SILHOUETTE_IOU
    if options.validator:
        result["validator"] = mesh_files.validate_glb(glb, options.tools)
        ok = ok and result["validator"]["errors"] == result["validator"]["warnings"] == 0
    if options.browser:
        picture_path = name.with_name(f"{name.name}-three.png")
        psnr = mesh_files.three_picture(glb, picture_path, options.tools, options.chromium)
        result["three_psnr"] = round(psnr, 2)
    if options.browser and (run_dir / "report.html").exists():
        picture_path = name.with_name(f"{name.name}-report.png")
        mesh_files.page_picture(run_dir / "report.html", picture_path, options.chromium, (1100, 2600))
    if options.blender is not None:
        picture_path = name.with_name(f"{name.name}-blender.png")
        result["blender"] = mesh_files.blender_picture(glb, picture_path, options.blender)
    result["ok"] = ok
    result = plain(result)  # equal pictures have a PSNR of infinity, which JSON lacks
    print(json.dumps(result, allow_nan=False), flush=True)
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[2])
    parser.add_argument("run_dirs", type=Path, nargs="*", metavar="RUN_DIR")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where model.glb lies (default: RUN_DIR/mesh)")
    parser.add_argument("--output", type=Path, metavar="DIR", default=Path("outputs/mesh-checks"), help="for pictures")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results as JSON")
    parser.add_argument("--validator", action="store_true", help="run the npm package gltf-validator")
    parser.add_argument("--browser", action="store_true", help="take pictures of three.js and of report.html")
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium", help="the browser's program")
    parser.add_argument("--blender", type=Path, metavar="PYTHON", help="render with Blender: a Python that has bpy")
    parser.add_argument("--tools", type=Path, metavar="DIR", default=TOOLS, help="where the npm packages are")
    parser.add_argument("--install", action="store_true", help="install the npm packages first")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
