"""``nfsd3d report RUN_DIR``: writes the page of a run again; of two runs, a page that compares them."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from nfsd3d.cli.options import Parser, writing_to
from nfsd3d.config.compose import load_run_config
from nfsd3d.errors import InputError
from nfsd3d.settings.paths import user_path


def main(argv: Sequence[str]) -> int:
    """Writes the page that ``argv`` asks for, prints its path, and returns 0.

    Raises:
        InputError: not a run, one run twice, or a page that cannot be written.
    """
    options = parser().parse_args(argv)
    folders = [user_path(folder) for folder in options.run_dir]
    if len(folders) > 2:
        raise InputError(f"report: {len(folders)} runs; give one, or two to compare them (more: nfsd3d sweep report)")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError(f"report: {folders[0]} is given twice; give two runs")
    runs = [(folder, load_run_config(folder)) for folder in folders]

    from nfsd3d.runs.files import write_text

    if len(runs) == 1:
        from nfsd3d.visualize.report import render_report

        text, path = render_report(*runs[0], None), folders[0] / "report.html"
    else:
        from nfsd3d.visualize.comparison import render_comparison

        places = [folder.resolve() for folder in folders]
        names = [os.path.relpath(place, os.path.commonpath(places)) for place in places]
        text, path = render_comparison(dict(zip(names, runs, strict=True))), Path("comparison.html")
    path = path if options.output is None else options.output
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    print(path)
    return 0


def parser() -> argparse.ArgumentParser:
    """The options of ``nfsd3d report``."""
    parser = Parser(
        prog="nfsd3d report",
        description="Write the page of a run again: of one that was interrupted or diverged too, with the scores that "
        "nfsd3d evaluate has kept in it. Of two runs: a page with their results, curves and different settings beside "
        "each other.",
    )
    parser.add_argument("run_dir", nargs="+", type=Path, metavar="RUN_DIR", help="a run, or two to compare")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="the page (default: RUN_DIR/report.html; of two: comparison.html)"
    )
    return parser
