"""``nfsd3d render RUN_DIR``: renders views or a turntable of an existing run."""

import argparse
from collections.abc import Sequence

from nfsd3d.cli.options import Parser, add_run_arguments, elevation, open_run, whole_number, writing_to


def main(argv: Sequence[str]) -> int:
    """Writes the images that ``argv`` asks for, prints their paths, and returns 0.

    Raises:
        InputError: not a run, no such checkpoint, or a folder that cannot be written.
    """
    options = parser().parse_args(argv)
    run = open_run(options)

    from nfsd3d.visualize.animation import Form
    from nfsd3d.visualize.image_grid import write_png

    size = options.size if options.size is not None else run.config.export.turntable_size
    folder = options.output if options.output is not None else run.directory
    files = []
    with writing_to(folder):
        if options.views is not None:
            images = run.views(options.views, size, options.elevation)
            (folder / "views").mkdir(parents=True, exist_ok=True)
            for index, image in enumerate(images):
                files.append(folder / "views" / f"{index:03d}.png")
                write_png(files[-1], image)
        if options.turntable or options.format is not None or options.views is None:
            frames = options.frames if options.frames is not None else run.config.export.turntable_frames
            form: Form = options.format or "mp4"
            size += size % 2 if form == "mp4" else 0  # the frames of a video have even sides
            files += run.turntable(folder, frames, size, options.elevation, form)
    print("\n".join(map(str, files)))
    return 0


def parser() -> argparse.ArgumentParser:
    """The options of ``nfsd3d render``."""
    parser = Parser(
        prog="nfsd3d render",
        description="Render a run: its turntable (video and contact sheet), or single views with --views. Defaults are "
        "those of the run's config.yaml.",
    )
    parser.add_argument("--views", type=whole_number(1), metavar="N", help="write N views as views/NNN.png")
    parser.add_argument("--turntable", action="store_true", help="with --views: write the turntable too")
    parser.add_argument(
        "--format",
        choices=("mp4", "gif", "webp", "png"),
        help="of the turntable: a video of image, depth and normals (default), or the object alone on clear ground, "
        "animated or as turntable/NNN.png",
    )
    parser.add_argument("--frames", type=whole_number(8), help="frames of the turntable's video")
    parser.add_argument("--size", type=whole_number(16), help="height and width of each view in pixels")
    parser.add_argument("--elevation", type=elevation, default=15.0, help="degrees above the horizon (default: 15)")
    add_run_arguments(parser, output="folder to write to (default: RUN_DIR)")
    return parser
