"""Argument types and helpers that the subcommands share: opening runs, writing results, old option names."""

from __future__ import annotations

import argparse
import errno
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from nfsd3d.config.renamed import current_name
from nfsd3d.errors import InputError
from nfsd3d.runs.files import write_json
from nfsd3d.settings.export import SIZES_MM, TEXTURE_SIZES

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from nfsd3d.api import Run

Number = TypeVar("Number", int, float)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `InputError`, which the command line prints on one line."""

    def error(self, message: str) -> NoReturn:
        """Raises InputError with argparse's ``message``."""
        raise InputError(f"{message}; see {self.prog} --help")


def add_run_arguments(parser: argparse.ArgumentParser, output: str) -> None:
    """Adds RUN_DIR, ``--step`` and ``--output`` (with the help text ``output``), for all commands on a run."""
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--step", type=whole_number(1), help="the checkpoint after this step (default: the newest)")
    parser.add_argument("--output", type=Path, metavar="DIR", help=output)


def open_run(options: argparse.Namespace) -> Run:
    """The run that the arguments of `add_run_arguments` name.

    Raises:
        InputError: as `nfsd3d.api.load_run`; for a folder that is no run before torch is imported.
    """
    from nfsd3d.config.compose import load_run_config

    load_run_config(options.run_dir)
    from nfsd3d.api import load_run

    return load_run(options.run_dir, options.step)


@contextmanager
def writing_to(path: Path, option: str = "--output") -> Iterator[None]:
    """Turns the block's write errors into an `InputError` that asks for another path for ``option``."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{option} {path}: cannot be written ({error.strerror}); choose another") from error


def check_writable(path: Path | None, option: str) -> None:
    """Creates the folder of a file that is written at the end of slow work.

    Raises:
        InputError: it cannot be created or written.
    """
    if path is None:
        return
    with writing_to(path, option):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def write_numbers(path: Path | None, numbers: object) -> None:
    """Writes the JSON file of ``--json PATH``, if given, and creates its folder.

    Raises:
        InputError: the file cannot be written.
    """
    if path is not None:
        with writing_to(path, "--json"):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, numbers)


def plain(value: Any) -> Any:
    """``value`` for JSON: dataclasses as dictionaries, non-finite numbers as None."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(
    expected: str, is_allowed: Callable[[Number], bool], kind: Callable[[str], Number]
) -> Callable[[str], Number]:
    """An argparse type: finite numbers that are allowed; ``expected`` ends the message about any other text."""

    def parse(text: str) -> Number:
        with suppress(ValueError):
            value = kind(text)
            if -math.inf < value < math.inf and is_allowed(value):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} {expected}")

    return parse


def whole_number(smallest: int, largest: int | None = None) -> Callable[[str], int]:
    """An argparse type: whole numbers from ``smallest`` to ``largest`` (None: no limit)."""
    expected = f"must be a whole number, at least {smallest}" + ("" if largest is None else f" and at most {largest}")
    return _number(expected, lambda value: smallest <= value and (largest is None or value <= largest), int)


texture_size = _number(
    "must be 0 (vertex colours, no texture) or a whole number from {} to {}".format(*TEXTURE_SIZES),
    lambda value: value == 0 or TEXTURE_SIZES[0] <= value <= TEXTURE_SIZES[1],
    int,
)
"""An argparse type: texels per side of a texture, or 0 for none."""
seconds = _number("must be seconds, above 0", lambda value: value > 0, float)
"""An argparse type: seconds, above 0."""
millimetres = _number(
    "must be 0 (a unit is a metre) or millimetres from {:g} to {:g}".format(*SIZES_MM),
    lambda value: value == 0 or SIZES_MM[0] <= value <= SIZES_MM[1],
    float,
)
"""An argparse type: the size of a mesh in millimetres, or 0 for the world's."""
at_least_zero = _number("must be a number, at least 0", lambda value: value >= 0, float)
"""An argparse type: numbers from 0."""
elevation = _number("must be degrees from -90 to 90", lambda value: -90 <= value <= 90, float)
"""An argparse type: degrees from -90 to 90."""
_density = _number("must be auto or a density above 0", lambda value: value > 0, float)


def triangles(text: str) -> list[int]:
    """An argparse type: whole numbers from 50 that become smaller, separated by commas; 0 for none."""
    if text.strip() == "0":
        return []
    numbers = [whole_number(50)(part) for part in text.split(",")]
    if numbers != sorted(set(numbers), reverse=True):
        raise argparse.ArgumentTypeError(f"{text!r} must become smaller, such as 10000,2000")
    return numbers


def density_or_auto(text: str) -> float | str:
    """An argparse type: ``auto``, or a density above 0."""
    return text if text == "auto" else _density(text)


def counting_bar(console: Console | None = None, *, transient: bool = False) -> Progress:
    """A progress bar with a count and times; a ``transient`` one disappears at the end."""
    from rich import progress as bar

    columns = (bar.TextColumn("{task.description}"), bar.BarColumn(), bar.MofNCompleteColumn())
    times = (bar.TimeElapsedColumn(), bar.TimeRemainingColumn())
    return bar.Progress(*columns, *times, console=console, transient=transient)


@contextmanager
def counted(
    description: str, total: int, console: Console | None = None, *, transient: bool = False
) -> Iterator[Callable[..., None]]:
    """A `counting_bar` of one task; yields a function that advances it by a number (default: 1)."""
    with counting_bar(console, transient=transient) as progress:
        task = progress.add_task(description, total=total)
        yield lambda count=1: progress.advance(task, count)


RENAMED_OPTIONS = {"--ceiling": "--oracle-fit", "--peer-steps": "--baseline-steps", "--jobs": "--workers"}
"""Options of the subcommands by the names of version 0.1, accepted for one minor version."""


def current_options(argv: Sequence[str]) -> list[str]:
    """``argv`` with old options replaced by their current names, each with a notice on stderr."""
    return [current_name(argument, RENAMED_OPTIONS) for argument in argv]
