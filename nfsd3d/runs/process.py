"""The identity of a process: its machine, and the start time that tells it from a later one with the same number."""

import os
import socket
import subprocess
import uuid
from pathlib import Path


def machine() -> str:
    """What identifies this running system: its boot and its namespace of process numbers, else its name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode()}"


def start_time(pid: int) -> str | None:
    """When a process of this machine started; "" if there is none, None if it cannot be known.

    A zombie counts as none: it writes nothing more. The unit is the system's own.
    """
    if Path("/proc/self/stat").exists():  # in clock ticks since the boot: the clock may be set meanwhile
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            return None if _exists(pid) else ""  # the system may hide other users' processes (hidepid)
        return "" if fields[0] in "ZX" else fields[19]
    try:
        shown = subprocess.run(
            ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    state, _, started = shown.stdout.strip().partition(" ")
    return "" if state.startswith("Z") else started.strip()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True
