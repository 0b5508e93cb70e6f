"""``nfsd3d export RUN_DIR``: meshes of a run that exists; errors are raised, for the command line to tell."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from nfsd3d.arguments import density_or_auto, whole_number
from nfsd3d.config import load_run_config
from nfsd3d.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Writes the meshes that ``argv`` asks for, says where they are, and returns 0.

    Raises:
        InputError: not a run, no such checkpoint or format, or a threshold at which there is no surface.
    """
    options = _parser().parse_args(argv)

    load_run_config(options.run_dir)  # a wrong path fails before the slow imports
    from nfsd3d.api import load_run
    from nfsd3d.export.extract import MeshSettings
    from nfsd3d.export.write import known_format, write_meshes
    from nfsd3d.files import write_json
    from nfsd3d.train.build import mesh_extras

    formats = None if options.formats is None else [known_format(name.strip()) for name in options.formats.split(",")]
    run = load_run(options.run_dir, options.step)
    wanted = run.config.export
    settings = MeshSettings(
        resolution=options.resolution if options.resolution is not None else wanted.resolution,
        threshold=options.threshold if options.threshold is not None else wanted.threshold,
        max_faces=options.max_faces if options.max_faces is not None else wanted.max_faces,
    )
    extracted = run.extract(settings)
    folder = options.output if options.output is not None else run.directory / "mesh"
    try:
        paths = write_meshes(extracted.mesh, folder, formats or wanted.formats, mesh_extras(run.config))
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another with --output") from error
    files, facts = [str(path) for path in paths], extracted.facts
    if options.json is not None:
        write_json(options.json, {"run": str(run.directory), "step": run.step, "files": files, **facts})
    low, high = facts["density_range"]
    print(f"{facts['faces']} triangles at density {facts['threshold']} (the field has {low} to {high})")
    print("\n".join(files))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nfsd3d export",
        description="Extract the mesh of a run with vertex colours. GLB and OBJ are y-up (front +Z), PLY and STL z-up "
        "(front +X). What is not given is as in the run's config.yaml.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--formats", metavar="LIST", help="comma-separated: glb, obj, ply, stl")
    parser.add_argument("--threshold", type=density_or_auto, help="density of the surface, or auto")
    parser.add_argument("--resolution", type=whole_number(16), help="samples per axis")
    parser.add_argument("--max-faces", type=whole_number(100), help="simplify to this many triangles")
    parser.add_argument("--step", type=whole_number(1), help="the checkpoint after this step (default: the newest)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for model.* (default: RUN_DIR/mesh)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write what was made, with its numbers, as JSON")
    return parser
