"""Atomic file writes, and reads of regular files only.

A file is written under a temporary name in the same folder, and moved into place when it is complete. That name has the
host and the process that writes it, so that those of processes that were killed can be told from those in use.
"""

import contextlib
import errno
import json
import os
import re
import socket
import stat
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nfsd3d.runs.process import start_time


def _host() -> str:
    """This host and its namespace of process numbers, which containers of the same host name do not share."""
    namespace = ""
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname() + namespace)


_HOST = _host()
_TEMPORARY = re.compile(r"\.(nfsd3d|lock)-(?P<pid>[0-9]+)-(?P<host>[A-Za-z0-9._]*)-.*")
_OWNERS = ("checkpoints", "previews")
"""Subfolders of a run directory where only the process that owns the run writes."""
_OLD_TEMPORARY = re.compile(r"\.(step|source)-.*\.(json|safetensors|png)")
"""Temporary files of version 0.1 in these subfolders."""


def temporary_path(path: Path, mark: str = ".nfsd3d") -> Path:
    """A new name for a temporary file beside ``path``, with the same suffix; :func:`remove_temporaries` knows it."""
    return path.with_name(f"{mark}-{os.getpid()}-{_HOST}-{uuid.uuid4().hex}{path.suffix}")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path with the same suffix in the same folder; moved to ``path`` if the block succeeds.

    If the block raises, the temporary file is removed and ``path`` stays as it was.

    Raises:
        OSError: the folder does not exist, or cannot be written to; it names ``path``. The folder is not created: a run
            whose directory was removed must not write half of it again.
    """
    temporary = temporary_path(path)
    try:
        temporary.touch(exist_ok=False)
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if str(error.filename) == str(temporary):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        # Not an error of its own: it would hide that of the block.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


class NotRegular(OSError):
    """A FIFO, device, directory or socket in place of a file."""


def read_bytes(path: Path) -> bytes:
    """The content of a regular file.

    Raises:
        NotRegular: it is something else. A FIFO would block its reader until a process writes to it.
        OSError: it cannot be read.
    """
    with open(path, "rb", opener=_open_regular) as stream:
        return stream.read()


def _open_regular(path: str, flags: int) -> int:
    try:
        handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has no FIFOs among files
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise NotRegular(errno.EINVAL, "not a regular file", path) from error
        raise
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    os.close(handle)
    raise NotRegular(errno.EINVAL, "not a regular file", path)


def sync_folder(folder: Path) -> None:
    """Brings the names of the files in ``folder`` to the disk, so that they survive a power cut."""
    with contextlib.suppress(OSError):  # Windows and some network file systems cannot
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_temporaries(run_dir: Path) -> None:
    """Removes the temporary files that processes left in ``run_dir`` when they were killed.

    The caller owns the run. In ``checkpoints/`` and ``previews/`` only the owner writes: all temporary files are
    removed. Elsewhere (meshes, views) other processes of this program may be writing: those of this host's dead
    processes are. A file that cannot be removed stays.
    """
    for folder, _, names in os.walk(run_dir):
        owned = Path(folder).parent == run_dir and Path(folder).name in _OWNERS
        for name in names:
            mark = _TEMPORARY.fullmatch(name)
            dead = mark is not None and mark["host"] == _HOST and start_time(int(mark["pid"])) == ""
            if dead or (owned and (mark or _OLD_TEMPORARY.fullmatch(name))):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(folder, name))


def is_temporary(path: Path) -> bool:
    """Whether the name is one of :func:`temporary_path`."""
    return _TEMPORARY.fullmatch(path.name) is not None


def check_writable(folder: Path) -> None:
    """Checks that files can be created in ``folder``, or where it would be created; leaves no file.

    Raises:
        OSError: they cannot.
    """
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    with tempfile.TemporaryFile(dir=there):
        pass


def write_bytes(path: Path, content: bytes) -> None:
    """Writes ``content`` to ``path`` atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Writes ``content`` to ``path`` atomically, as UTF-8."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: object) -> None:
    """Writes plain values to ``path`` atomically, indented; a NaN or infinity raises ValueError."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def json_object(content: bytes) -> dict[str, Any]:
    """The JSON object that is the ``content`` of a file.

    Raises:
        ValueError: it is damaged, or no object.
    """
    try:
        found = json.loads(content.decode())
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("no object")
    return found


REMEDIES = {
    "ENOSPC": "free some space",
    "EDQUOT": "free some of your quota",
    "EFBIG": "raise the limit of file sizes (ulimit -f)",
    "EROFS": "make the file system writable",
    "EMFILE": "raise the limit of open files (ulimit -n)",
    "ENFILE": "close some files of other programs",
    "EIO": "check the disk",
    "ESTALE": "mount the file system again",
    "ENOENT": "put the run directory back",
}
"""What to do about an error of the file system, by the name of its number."""


def remedy(error: OSError) -> str:
    """What to do about an error of the file system."""
    return REMEDIES.get(errno.errorcode.get(error.errno or 0, ""), "remove the cause")


def storage_error(error: BaseException | None) -> OSError | None:
    """The file system's error that led to ``error``: a library may have raised one of its own instead.

    A missing file is none, because that may be a mistake of the program.
    """
    while error is not None:
        name = errno.errorcode.get(error.errno or 0) if isinstance(error, OSError) else None
        if isinstance(error, OSError) and name in REMEDIES and name != "ENOENT":
            return error
        error = error.__cause__ or error.__context__
    return None


def describe(error: OSError) -> str:
    """What went wrong and with which file, on one line."""
    reason = error.strerror or first_line(error)
    return f"{error.filename}: {reason}" if error.filename else reason


def first_line(error: Exception) -> str:
    """The first line of an error's message; its type if it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
