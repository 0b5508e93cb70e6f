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
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from nfsd3d.errors import InputError, RunFailed
from nfsd3d.runs.files import remove_temporaries

NAME = ".lock"
HEARTBEAT = 10.0
"""Seconds between two heartbeats."""
STALE = 60.0
"""Seconds without a heartbeat after which an owner on another machine counts as dead."""
PAUSE = 0.5
"""Seconds between two looks at a lock that is being replaced, or at another machine's heartbeat."""


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
        return cls(socket.gethostname(), pid, _machine(), _start_time(pid), since, uuid.uuid4().hex)

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
        InputError: the directory belongs to another process or thread, or cannot be written to.
    """
    path = run_dir.resolve() / NAME
    if path in _held and _held[path][0].pid == os.getpid() and _held[path][1] == threading.get_ident():
        yield
        return
    owner = Owner.this_process()
    _tokens.add(owner.token)
    try:
        _acquire(path, owner)
    except BaseException as error:
        _tokens.discard(owner.token)
        if not isinstance(error, OSError):
            raise
        raise InputError(f"{run_dir}: cannot be written ({error.strerror}); choose another run directory") from error
    _held[path] = (owner, threading.get_ident())
    released = threading.Event()
    threading.Thread(target=_beat, args=(path, owner, released), daemon=True, name="run directory heartbeat").start()
    try:
        remove_temporaries(path.parent)
        yield
    finally:
        released.set()
        del _held[path]
        _tokens.discard(owner.token)
        with suppress(OSError):
            if os.getpid() == owner.pid and _read(path) == owner:  # a forked child leaves its parent's lock alone
                path.unlink()


def live_owner(run_dir: Path) -> Owner | None:
    """The process that ``run_dir`` belongs to; None without one. Nothing is waited for or changed.

    On another machine a process counts as alive while its heartbeat is younger than :data:`STALE` by this machine's
    clock.
    """
    path = run_dir / NAME
    try:
        owner, status = _read(path), path.stat()
    except OSError:
        return None
    alive = _is_alive(owner, status)
    return owner if alive or (alive is None and time.time() - status.st_mtime < STALE) else None


def check_owned(run_dir: Path) -> None:
    """Checks that ``run_dir`` still belongs to this process, if :func:`owned` has said so.

    Raises:
        RunFailed: it was deleted or moved, or another process has taken it over.
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
        raise RunFailed(f"{run_dir}: was taken over by {found}, because this process was suspended; this one stops")
    if run_dir.is_dir():
        raise RunFailed(f"{run_dir}: its file {NAME} is gone, so that it may belong to another process; this one stops")
    raise RunFailed(f"{run_dir}: the run directory is gone; this process stops")


def _acquire(path: Path, owner: Owner) -> None:
    """Creates the lock, in place of a dead owner's."""
    watched: tuple[Owner | None, float] | None = None
    while True:
        with _turn(path.parent):
            if _create(path, owner):
                return
            try:
                found, status = _read(path), path.stat()
            except FileNotFoundError:
                continue  # released meanwhile
            beat = status.st_mtime
            alive = _is_alive(found, status)
            if alive is None and watched is not None and watched[0] == found and watched[1] != beat:
                alive = True
            if alive is None:
                age = _server_time(path.parent) - beat
                if age > STALE:
                    alive = False
                elif watched is None:
                    wait = f"waiting up to {STALE - age:.0f} s for its heartbeat"
                    print(f"{path.parent}: locked by {found or 'an unknown process'}; {wait}", file=sys.stderr)
                watched = (found, beat)
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
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{NAME}-")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(asdict(owner), stream)
        temporary.chmod(0o644)  # other users read whom the directory belongs to
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            return _create_exclusively(path, temporary.read_bytes())
        return True
    finally:
        temporary.unlink(missing_ok=True)


def _create_exclusively(path: Path, content: bytes) -> bool:
    try:
        with path.open("xb") as stream:
            stream.write(content)
    except FileExistsError:
        return False
    return True


def _remove_stale(path: Path, stale: Owner | None) -> None:
    """Removes the lock of ``stale``; one that another process has put in its place meanwhile is put back."""
    aside = path.with_name(f"{NAME}-{uuid.uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if _read(aside) != stale:
        with suppress(FileExistsError):
            os.link(aside, path)
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
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError, PermissionError, ValueError, TypeError):
        return None


def _is_alive(owner: Owner | None, status: os.stat_result) -> bool | None:
    """Whether the owner that wrote a lock of this ``status`` runs; None if it cannot be known.

    It cannot for another machine's process, nor for another user's, which the system may hide.
    """
    ours = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    if owner is None or owner.machine != _machine() or owner.started is None or not ours:
        return None
    if owner.pid == os.getpid() and owner.token not in _tokens:
        return False  # left by a block of this process that could not remove it, because the directory was away
    return owner.started == _start_time(owner.pid)


def _server_time(folder: Path) -> float:
    """The present time by the clock that gives files in ``folder`` their times."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=f"{NAME}-") as stream:
        return os.fstat(stream.fileno()).st_mtime


def _machine() -> str:
    """What identifies this running system: its boot and its namespace of process numbers, else its name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode()}"


def _start_time(pid: int) -> str | None:
    """When a process of this machine started; "" if there is none, None if it cannot be known.

    A zombie counts as none: it writes nothing more. The unit is the system's own.
    """
    if Path("/proc/self/stat").exists():  # in clock ticks since the boot: the clock may be set meanwhile
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return ""
        return "" if fields[0] in "ZX" else fields[19]
    try:
        shown = subprocess.run(
            ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    state, _, started = shown.stdout.strip().partition(" ")
    return "" if state.startswith("Z") else started.strip()
