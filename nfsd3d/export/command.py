"""``nfsd3d export RUN_DIR``: meshes of a run that exists; errors are raised, for the command line to tell."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from nfsd3d.arguments import add_run_arguments, density_or_auto, open_run, whole_number, write_numbers, writing_to


def main(argv: Sequence[str]) -> int:
    """Writes the meshes that ``argv`` asks for, says where they are, and returns 0.

    Raises:
        InputError: not a run, no such checkpoint or format, a threshold at which there is no surface, or a file that
            cannot be written.
    """
    options = _parser().parse_args(argv)
    run = open_run(options)

    from nfsd3d.export.extract import MeshSettings
    from nfsd3d.export.write import known_format, write_meshes
    from nfsd3d.train.build import mesh_extras

    formats = None if options.formats is None else [known_format(name.strip()) for name in options.formats.split(",")]
    wanted = run.config.export
    settings = MeshSettings(
        resolution=options.resolution if options.resolution is not None else wanted.resolution,
        threshold=options.threshold if options.threshold is not None else wanted.threshold,
        max_faces=options.max_faces if options.max_faces is not None else wanted.max_faces,
    )
    extracted = run.extract(settings)
    folder = options.output if options.output is not None else run.directory / "mesh"
    with writing_to(folder):
        paths = write_meshes(extracted.mesh, folder, formats or wanted.formats, mesh_extras(run.config))
    files, facts = [str(path) for path in paths], extracted.facts
    write_numbers(options.json, {"run": str(run.directory), "step": run.step, "files": files, **facts})
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
    parser.add_argument("--formats", metavar="LIST", help="comma-separated: glb, obj, ply, stl")
    parser.add_argument("--threshold", type=density_or_auto, help="density of the surface, or auto")
    parser.add_argument("--resolution", type=whole_number(16), help="samples per axis")
    parser.add_argument("--max-faces", type=whole_number(100), help="simplify to this many triangles")
    add_run_arguments(parser, output="folder for model.* (default: RUN_DIR/mesh)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write what was made, with its numbers, as JSON")
    return parser
