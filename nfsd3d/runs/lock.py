"""Ownership of a run directory: an advisory lock for the life of the process that writes to it.

Problem: two processes in one directory mix their results. ``flock`` does not solve it: it is inherited by forked
children, which keep it after the owner was killed, and not every network file system has it.
Idea: a file ``.lock`` that names its owner, created with a hard link, which is atomic on network file systems too. On
the owner's machine the process number and its start time decide whether the owner is alive. Elsewhere its heartbeat
does: a thread renews the file's time every :data:`HEARTBEAT` seconds, and a file older than :data:`STALE` seconds, by
the file server's clock, has no owner. An owner that was suspended for longer finds another owner's lock, and stops
writing (:func:`check_owned`).
Measurement: tests/runs/test_lock.py starts, kills and forks processes on one directory.
"""

import json
import os
import socket
import stat
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from nfsd3d.errors import InputError, RunFailed
from nfsd3d.runs.files import NotRegular, json_object, read_bytes, remove_temporaries, temporary_path
from nfsd3d.runs.process import machine, start_time

NAME = ".lock"
HEARTBEAT = 10.0
"""Seconds between two heartbeats."""
STALE = 60.0
"""Seconds without a heartbeat after which an owner on another machine counts as dead."""
PAUSE = 0.5
"""Seconds between two looks at a lock that is being replaced, or at another machine's heartbeat."""


class OwnerLost(RunFailed):
    """A process no longer owns its run directory, and must not write to it."""


@dataclass(frozen=True)
class Owner:
    """The process that a lock names.

    ``machine`` identifies the running system and its process numbers; ``started`` is the process's start time in the
    system's own unit, so that a later process with the same number is another one. ``token`` differs for each lock.
    """

    host: str
    pid: int
    machine: str
    started: str | None
    since: str
    token: str

    @classmethod
    def this_process(cls) -> "Owner":
        """This process, with a new token."""
        pid, since = os.getpid(), datetime.now().astimezone().isoformat(timespec="seconds")
        return cls(socket.gethostname(), pid, machine(), start_time(pid), since, uuid.uuid4().hex)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


_held: dict[Path, tuple[Owner, int]] = {}
"""The locks that this process holds, with the thread that took them."""

_tokens: set[str] = set()
"""The tokens of the locks that this process holds or is taking."""


@contextmanager
def owned(run_dir: Path) -> Iterator[None]:
    """Within the block, ``run_dir``, an existing directory, belongs to this thread; blocks may be nested.

    The lock of a dead owner is replaced, and the temporary files of dead processes are removed. Where another machine's
    owner may be dead, this takes up to :data:`STALE` seconds, and a line on stderr says so.

    Raises:
        InputError: the directory belongs to another process or thread, cannot be written to, or has something else of
            the lock's name.
    """
    path = run_dir.resolve() / NAME
    if path in _held and _held[path][0].pid == os.getpid() and _held[path][1] == threading.get_ident():
        yield
        return
    owner, released = Owner.this_process(), threading.Event()
    _tokens.add(owner.token)
    try:
        try:
            _acquire(path, owner)
        except OSError as error:
            raise InputError(
                f"{run_dir}: cannot be written ({error.strerror}); choose another run directory"
            ) from error
        _held[path] = (owner, threading.get_ident())
        threading.Thread(
            target=_beat, args=(path, owner, released), daemon=True, name="run directory heartbeat"
        ).start()
        remove_temporaries(path.parent)
        yield
    finally:
        released.set()
        with suppress(OSError):
            if os.getpid() == owner.pid and _read(path) == owner:  # a forked child leaves its parent's lock alone
                path.unlink()
        if path in _held and _held[path][0] == owner:  # not another thread's, by which this one was refused
            del _held[path]
        _tokens.discard(owner.token)  # last: without it, other threads take the lock for that of a dead owner


def live_owner(run_dir: Path) -> Owner | None:
    """The process that ``run_dir`` belongs to; None without one. Nothing is waited for or changed.

    On another machine a process counts as alive while its heartbeat is younger than :data:`STALE` by this machine's
    clock.
    """
    path = run_dir / NAME
    try:
        owner, beat = _read(path), path.stat().st_mtime
    except OSError:
        return None
    alive = _is_alive(owner)
    return owner if alive or (alive is None and time.time() - beat < STALE) else None


def check_owned(run_dir: Path) -> None:
    """Checks that ``run_dir`` still belongs to this process, if :func:`owned` has said so.

    Raises:
        OwnerLost: it was deleted or moved, or another process has taken it over.
        OSError: the lock cannot be read.
    """
    path = run_dir.resolve() / NAME
    if path not in _held:
        return
    owner, _ = _held[path]
    for _attempt in range(3):  # another process may be putting back what it took by mistake
        found = _read(path)
        if found == owner:
            return
        time.sleep(PAUSE)
    if found is not None:
        raise OwnerLost(f"{run_dir}: was taken over by {found}, because this process was suspended; this one stops")
    if run_dir.is_dir():
        state = "damaged" if os.path.lexists(path) else "gone"
        raise OwnerLost(
            f"{run_dir}: its file {NAME} is {state}, so that it may belong to another process; this one stops"
        )
    raise OwnerLost(f"{run_dir}: the run directory is gone; this process stops")


def _acquire(path: Path, owner: Owner) -> None:
    """Creates the lock, in place of a dead owner's.

    Raises:
        InputError: the owner is alive, or the lock is no regular file: nothing of this program's, which stays.
        OSError: it cannot be written.
    """
    watched: tuple[Owner | None, float] | None = None
    since = 0.0
    while True:
        with _turn(path.parent):
            if _create(path, owner):
                return
            try:
                found, status = _read(path), path.lstat()
            except FileNotFoundError:
                continue  # released meanwhile
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{path}: not a regular file, and so no lock of a run; move it away")
            seen = found, (beat := status.st_mtime)
            alive = _is_alive(found)
            if alive is None:  # its heartbeat decides
                age = _server_time(path) - beat
                if watched is None or watched[0] != found:
                    since = time.monotonic()
                elif watched != seen:
                    alive = True
                # The second condition is for a time in the future: the server's clock was set back.
                if alive is None and (age > STALE or time.monotonic() - since > STALE):
                    alive = False
                elif watched is None:
                    wait = f"waiting up to {min(STALE - age, STALE):.0f} s for its heartbeat"
                    print(f"{path.parent}: locked by {found or 'an unknown process'}; {wait}", file=sys.stderr)
                watched = seen
            if alive:
                remedy = "wait until it ends, stop it there, or choose another run_dir"
                raise InputError(f"{path.parent}: in use by {found or 'another process'}; {remedy}")
            if alive is not None:
                _remove_stale(path, found)
        if alive is None:
            time.sleep(PAUSE)


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Within the block, no other process of this machine replaces a lock in ``folder``.

    It is held for milliseconds, so that the faults of ``flock`` do not matter. Without it, or on other machines, the
    loser of a race finds out in :func:`check_owned`.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without it
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # not by closing: a child that was forked meanwhile has it open, too
        os.close(handle)


def _create(path: Path, owner: Owner) -> bool:
    """Creates the lock atomically, with its content; false if there is one already."""
    temporary = temporary_path(path, NAME)
    try:
        temporary.write_text(json.dumps(asdict(owner)), encoding="utf-8")
        temporary.chmod(0o644)  # other users read whom the directory belongs to
        return _put(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _put(temporary: Path, path: Path) -> bool:
    """Gives the lock ``temporary`` the name ``path``, too; false if there is a lock of this name already."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return temporary.stat().st_nlink > 1  # a repeated request to an NFS server, whose first answer was lost
    except OSError:  # a file system without hard links
        try:
            with path.open("xb") as stream:
                stream.write(temporary.read_bytes())
        except FileExistsError:
            return False
    return True


def _remove_stale(path: Path, stale: Owner | None) -> None:
    """Removes the lock of ``stale``; one that another process has put in its place meanwhile is put back."""
    aside = temporary_path(path, NAME)
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if _read(aside) != stale:
        _put(aside, path)
    aside.unlink()


def _beat(path: Path, owner: Owner, released: threading.Event) -> None:
    """Renews the lock's time until it is released, or belongs to another owner."""
    while not released.wait(HEARTBEAT):
        with suppress(OSError):
            if _read(path) == owner:
                os.utime(path)


def _read(path: Path) -> Owner | None:
    """The owner that a lock names; None without a lock, and for one that cannot be read."""
    try:
        owner = Owner(**json_object(read_bytes(path)))
    except (FileNotFoundError, NotADirectoryError, PermissionError, NotRegular, ValueError, TypeError):
        return None
    return owner if type(owner.pid) is int else None


def _is_alive(owner: Owner | None) -> bool | None:
    """Whether the owner that a lock names runs; None if it cannot be known, as for another machine's process."""
    if owner is None or owner.machine != machine() or owner.started is None:
        return None
    if owner.pid == os.getpid() and owner.token not in _tokens:
        return False  # left by a block of this process that could not remove it, because the directory was away
    started = start_time(owner.pid)
    return None if started is None else owner.started == started


def _server_time(path: Path) -> float:
    """The present time by the clock that gives files beside ``path`` their times."""
    probe = temporary_path(path, NAME)
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
