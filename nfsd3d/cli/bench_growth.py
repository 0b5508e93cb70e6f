"""``nfsd3d bench --growth``: time and memory of a step and of the export by their sizes."""

from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from nfsd3d.bench import growth, tables
from nfsd3d.cli.options import Parser, check_writable, counted, whole_number, write_numbers, writing_to
from nfsd3d.errors import InputError
from nfsd3d.runs.files import write_text


def main(argv: Sequence[str]) -> int:
    """Measures the growth, prints a table for each size, and returns 0.

    Raises:
        InputError: a command failed, or a file cannot be written.
    """
    options = parser().parse_args(argv)
    if find_spec("resource") is None:
        raise InputError("--growth: this system does not tell a process's memory; use Linux or macOS")
    check_writable(options.chart, "--chart")
    check_writable(options.json, "--json")
    console = Console()
    with counted("sizes", growth.count(), console, transient=True) as advance:
        found = growth.measure(options.steps, options.threads, advance)
    for one in found:
        console.print(tables.growth_table(one))
    if options.chart is not None:
        with writing_to(options.chart, "--chart"):
            write_text(options.chart, growth.chart(found))
    write_numbers(
        options.json, {"steps": options.steps, "threads": options.threads, "growth": list(map(asdict, found))}
    )
    return 0


def parser() -> Parser:
    """The options of ``nfsd3d bench --growth``."""
    parser = Parser(
        prog="nfsd3d bench --growth",
        description="Measure on the CPU how time and peak memory of a training step of the demo grow with its views, "
        "pixels, samples and hash tables, and those of the export with its cells; each size in a new process. Takes "
        "about six minutes and 2 GB; the machine should have nothing else to do.",
    )
    parser.add_argument("--growth", action="store_true", required=True, help="measure the growth")
    parser.add_argument("--steps", type=whole_number(2), default=20, help="training steps of each size (default: 20)")
    parser.add_argument("--threads", type=whole_number(1), default=2, help="of torch and numba (default: 2)")
    parser.add_argument("--chart", type=Path, metavar="SVG", help="draw time and memory by each size")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the numbers to PATH too")
    return parser
