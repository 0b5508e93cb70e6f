"""What a run that did not start has left in its directory, so that the same command starts it anew.

A run that fails or is interrupted before its first checkpoint leaves a summary, and perhaps its id, its configuration
and its source. They are this program's if ``run.json`` has a run's id, or ``summary.json`` says that no step was
finished. Otherwise a file ``config.yaml`` may be the user's. A directory with any other file is used, and stays.
"""

import os
import stat
from pathlib import Path

from nfsd3d.errors import InputError
from nfsd3d.runs import identity, lock
from nfsd3d.runs.files import is_temporary, json_object, read_bytes
from nfsd3d.runs.resumable import FIELD

OF_JOBS = frozenset({"job.json", "job.log"})
"""Files of a sweep that lie in a run's directory before the run begins."""
_EVIDENCE = (identity.NAME, "summary.json")
_OF_RUNS = ("config.yaml", "checkpoints/source.json", "checkpoints/source.safetensors")
_HALF_WRITTEN = "checkpoints/step-000000.safetensors"
"""The first checkpoint's, whose JSON file is written after it."""
_METRICS = "metrics.jsonl"


def found(run_dir: Path) -> list[Path] | None:
    """The files that an unstarted run has left, in the order of their removal; None if there is any other.

    Locks, files of jobs and temporary files do not count; nor do empty folders of checkpoints. What an unstarted field
    (`nfsd3d.runs.field_stage`) has left in its folder counts as the run's.

    Raises:
        OSError: the directory cannot be read.
    """
    sizes = {name: _size(run_dir / name) for name in _names(run_dir)}
    evidence = [name for name in _EVIDENCE if sizes.get(name) is not None and _of_unstarted_run(run_dir / name)]
    of_field = {name for name in sizes if name.startswith(f"{FIELD}/")}  # see _names
    known = {*evidence, *_OF_RUNS, _HALF_WRITTEN, _METRICS, *of_field} if evidence else set()
    if None in sizes.values() or sizes.keys() - known or sizes.get(_METRICS):
        return None
    return [run_dir / name for name in [*sorted(sizes.keys() - set(evidence)), *evidence]]


def remove(run_dir: Path) -> None:
    """Removes what an unstarted run has left; the caller owns the directory, which may not hold anything else.

    Raises:
        InputError: a file cannot be removed.
    """
    try:
        for path in found(run_dir) or []:
            path.unlink()
    except OSError as error:
        raise InputError(f"run_dir={run_dir}: cannot be emptied ({error.strerror}); choose another") from error


def _names(run_dir: Path) -> list[str]:
    """The names of everything that counts, relative to the run; of the folder ``checkpoints`` its content."""
    counted = []
    for entry in os.scandir(run_dir):
        path = Path(entry.path)
        if entry.name == "checkpoints" and entry.is_dir(follow_symlinks=False):
            counted += [f"checkpoints/{file.name}" for file in path.iterdir() if not is_temporary(file)]
        elif entry.name == FIELD and entry.is_dir(follow_symlinks=False) and (left := found(path)) is not None:
            counted += [file.relative_to(run_dir).as_posix() for file in left]
        elif not (entry.name.startswith(lock.NAME) or entry.name in OF_JOBS or is_temporary(path)):
            counted.append(entry.name)
    return counted


def _size(path: Path) -> int | None:
    """The size of a regular file in bytes; None for anything else, such as a folder."""
    status = path.lstat()
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _of_unstarted_run(path: Path) -> bool:
    """Whether a file shows that this program's run was in the directory, and finished no step."""
    if path.name == identity.NAME:
        return identity.read(path.parent) is not None
    try:
        summary = json_object(read_bytes(path))
    except (OSError, ValueError):
        return False
    return summary.get("status") in ("interrupted", "failed") and summary.get("steps", 0) == 0
