"""The manifest of a set of jobs: the command line and the directory of each, written before the first one begins."""

import json
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from nfsd3d.errors import InputError
from nfsd3d.runs.files import replacing

NAME = "manifest.jsonl"
FORMAT = 1
KINDS = ("sweep", "suite", "compare", "tune")


@dataclass(frozen=True)
class Job:
    """One job: a command line of this program with a directory of its own.

    ``number`` counts from 0. ``directory`` is relative to the set's folder. ``arguments`` follow those that all jobs
    share. ``values`` are its values of the set's columns, such as the swept settings.
    """

    number: int
    directory: str
    arguments: tuple[str, ...]
    values: tuple[str, ...]

    def __str__(self) -> str:
        return self.directory


@dataclass(frozen=True)
class Manifest:
    """A set of jobs in ``folder``.

    ``kind`` is one of :data:`KINDS`. ``arguments`` begin every job's command line, which runs in the directory
    ``cwd``. ``columns`` name the values in which jobs differ. The first ``leading`` jobs end before the others begin.
    """

    folder: Path
    kind: str
    arguments: tuple[str, ...]
    columns: tuple[str, ...]
    jobs: tuple[Job, ...]
    cwd: Path
    leading: int = 0

    def run_dir(self, job: Job) -> Path:
        """The job's directory."""
        return self.folder / job.directory

    def same_jobs(self, other: "Manifest") -> bool:
        """Whether both have the same jobs in the same directories; their folders may differ."""
        return (self.kind, self.arguments, self.columns, self.jobs) == (
            *(other.kind, other.arguments, other.columns, other.jobs),
        )


def new_manifest(
    folder: Path,
    kind: str,
    arguments: Sequence[str],
    columns: Sequence[str],
    jobs: Sequence[tuple[str, Sequence[str], Mapping[str, str]]],
    leading: int = 0,
) -> Manifest:
    """A manifest of ``jobs``: (directory, arguments, values by column) of each; the file is not written.

    Raises:
        InputError: two jobs have the same directory.
    """
    numbered = tuple(
        Job(number, directory, tuple(own), tuple(values.get(column, "") for column in columns))
        for number, (directory, own, values) in enumerate(jobs)
    )
    directory, count = Counter(job.directory for job in numbered).most_common(1)[0]
    if count > 1:
        raise InputError(f"{folder}: {count} jobs would share the directory {directory}; give distinct values")
    return Manifest(folder, kind, tuple(arguments), tuple(columns), numbered, Path.cwd(), leading)


def job_count(number: int) -> str:
    """``1 job``, ``16 jobs``."""
    return f"{number} job{'s' * (number != 1)}"


def resume_command(folder: Path, kind: str = "sweep") -> str:
    """The command that goes on with the set in ``folder``, for a shell, by the program that this process runs."""
    program = "python launch.py" if Path(sys.argv[0]).name == "launch.py" else "nfsd3d"
    return f"{program} {'tune --resume' if kind == 'tune' else 'sweep resume'} {shlex.quote(str(folder))}"


def job_folder(number: int, values: Mapping[str, str]) -> str:
    """``<n>-distill=sds,seed=0`` as a file name, with the last part of each key."""
    words = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in sorted(values.items()))
    words = re.sub(r"[^A-Za-z0-9=,._-]+", "-", words)[:120].strip("-.")
    return f"{number}-{words}" if words else str(number)


def write(manifest: Manifest) -> None:
    """Writes the manifest into its folder, which exists.

    Raises:
        OSError: the folder cannot be written to.
    """
    header = {
        "format": FORMAT,
        "kind": manifest.kind,
        "arguments": manifest.arguments,
        "columns": manifest.columns,
        "jobs": len(manifest.jobs),
        "cwd": str(manifest.cwd),
        "leading": manifest.leading,
    }
    lines = [json.dumps(header, ensure_ascii=False)]
    lines += [
        json.dumps({"directory": job.directory, "arguments": job.arguments, "values": job.values}, ensure_ascii=False)
        for job in manifest.jobs
    ]
    with replacing(manifest.folder / NAME) as temporary:
        temporary.write_text("\n".join([*lines, ""]), encoding="utf-8")


def rewrite(manifest: Manifest) -> None:
    """Writes the manifest into its folder, which exists, in place of an earlier one of the same kind.

    Raises:
        InputError: the folder is that of another kind of set.
        OSError: the folder cannot be written to.
    """
    if (manifest.folder / NAME).exists() and (kind := read(manifest.folder).kind) != manifest.kind:
        raise InputError(f"--output {manifest.folder}: holds the jobs of a {kind}; choose another")
    write(manifest)


def read(folder: Path) -> Manifest:
    """The manifest in ``folder``.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    path = folder / NAME
    try:
        status = os.stat(path)
        return _read(path, status.st_mtime_ns, status.st_size)
    except FileNotFoundError as error:
        raise InputError(f"{folder}: holds no {NAME}; give the folder of a sweep, suite or comparison") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not a manifest of this version ({error}); start the sweep anew") from error


@lru_cache(maxsize=4)  # a worker reads it for every job
def _read(path: Path, modified: int, size: int) -> Manifest:
    del modified, size
    # Not str.splitlines: it splits at U+2028, too, which a prompt may have.
    header, *lines = map(json.loads, path.read_bytes().removesuffix(b"\n").split(b"\n"))
    if header["format"] != FORMAT or header["kind"] not in KINDS:
        raise ValueError(f"format {header['format']}, kind {header['kind']}")
    columns = _texts(header["columns"])
    jobs = tuple(
        Job(number, _inside(line["directory"]), _texts(line["arguments"]), _texts(line["values"]))
        for number, line in enumerate(lines)
    )
    if len(jobs) != header["jobs"] or any(len(job.values) != len(columns) for job in jobs):
        raise ValueError(f"{len(jobs)} of {header['jobs']} jobs, or values that are missing")
    return Manifest(
        path.parent,
        header["kind"],
        _texts(header["arguments"]),
        columns,
        jobs,
        Path(header["cwd"]),
        int(header["leading"]),
    )


def _texts(values: object) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{values} is no list of texts")
    return tuple(values)


def _inside(directory: str) -> str:
    """A job's directory; it lies within the set's folder, whoever wrote the manifest."""
    if not Path(directory).parts or Path(directory).is_absolute() or ".." in Path(directory).parts:
        raise ValueError(f"directory {directory}")
    return directory
