"""``nfsd3d bench --against REV``: the speed of this source tree beside another revision's."""

from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from nfsd3d.bench import against, tables
from nfsd3d.bench.tree import ROOT
from nfsd3d.cli.options import Parser, check_writable, counted, whole_number, write_numbers
from nfsd3d.errors import InputError
from nfsd3d.export.progress import print_line


def main(argv: Sequence[str]) -> int:
    """Measures what ``argv`` asks for, prints the ratios, and returns 0.

    Raises:
        InputError: there is no such revision, a command of one of the trees failed, or ``--json`` cannot be written.
    """
    options = parser().parse_args(argv)
    if find_spec("resource") is None:
        raise InputError(
            f"--against {options.against}: this system does not tell a process's memory; use Linux or macOS"
        )
    check_writable(options.json, "--json")
    names = tuple(dict.fromkeys(options.only or against.MEASUREMENTS))
    settings = against.Settings(options.rounds, options.steps, options.threads)
    console = Console()
    with against.checked_out(options.against) as other:
        print_line(console, f"{options.against} and {ROOT}, {options.threads} threads, {options.rounds} rounds")
        with counted(
            "measurements", 2 * (options.rounds + against.WARMUP_ROUNDS) * len(names), console, transient=True
        ) as advance:
            figures = against.measure(names, other, settings, advance)
    console.print(tables.ratio_table(options.against, figures))
    write_numbers(options.json, {"against": options.against, **asdict(settings), "figures": list(map(asdict, figures))})
    return 0


def parser() -> Parser:
    """The options of ``nfsd3d bench --against``."""
    parser = Parser(
        prog="nfsd3d bench --against REV",
        description="Measure this source tree, uncommitted changes included, and another revision of it in turn, on "
        "the CPU, each time in a new process with the same packages: a training step of the demo and its parts, the "
        "start (from the command to the first step), a whole run, and the export of meshes. Printed are the medians, "
        "and how many times less this tree takes, with the smallest and largest ratio of a round. The machine should "
        "have nothing else to do.",
    )
    parser.add_argument("--against", metavar="REV", required=True, help="commit, tag or branch of this git checkout")
    parser.add_argument("--only", nargs="+", choices=against.MEASUREMENTS, help="measure only these")
    parser.add_argument("--rounds", type=whole_number(1), default=5, help="measurements of each tree (default: 5)")
    parser.add_argument("--steps", type=whole_number(1), default=60, help="training steps of each (default: 60)")
    parser.add_argument("--threads", type=whole_number(1), default=2, help="of torch and numba (default: 2)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the numbers to PATH too")
    return parser
