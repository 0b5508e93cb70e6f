"""``nfsd3d render RUN_DIR``: pictures of a run that exists; errors are raised, for the command line to tell."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from nfsd3d.arguments import elevation, whole_number
from nfsd3d.config import load_run_config
from nfsd3d.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Writes the pictures that ``argv`` asks for, says where they are, and returns 0.

    Raises:
        InputError: not a run, or no such checkpoint.
    """
    options = _parser().parse_args(argv)

    load_run_config(options.run_dir)  # a wrong path fails before the slow imports
    from nfsd3d.api import load_run
    from nfsd3d.export.pictures import write_png

    run = load_run(options.run_dir, options.step)
    size = options.size if options.size is not None else run.config.export.turntable_size
    folder = options.output if options.output is not None else run.directory
    files = []
    try:
        if options.views is not None:
            for index, image in enumerate(run.views(options.views, size, options.elevation)):
                files.append(folder / "views" / f"{index:03d}.png")
                write_png(files[-1], image)
        if options.turntable or options.views is None:
            frames = options.frames if options.frames is not None else run.config.export.turntable_frames
            # Video frames have even sides.
            files += run.turntable(folder, frames, size + size % 2, options.elevation)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another with --output") from error
    print("\n".join(map(str, files)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nfsd3d render",
        description="Render a run: its turntable (video and contact sheet), or single views with --views. What is not "
        "given is as in the run's config.yaml.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--views", type=whole_number(1), metavar="N", help="write N views as views/NNN.png")
    parser.add_argument("--turntable", action="store_true", help="with --views: write the turntable too")
    parser.add_argument("--frames", type=whole_number(8), help="frames of the turntable's video")
    parser.add_argument("--size", type=whole_number(16), help="height and width of each view in pixels")
    parser.add_argument("--elevation", type=elevation, default=15.0, help="degrees above the horizon (default: 15)")
    parser.add_argument("--step", type=whole_number(1), help="the checkpoint after this step (default: the newest)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to write to (default: RUN_DIR)")
    return parser
