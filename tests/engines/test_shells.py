"""Completion in real shells: presses of the tab key in bash and zsh, and fish's own list."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.engines

BIN = str(Path(sys.executable).parent)


def pressed(command, setup, keys, wanted, tmp_path):
    """What a shell on a terminal shows after ``setup`` and ``keys``, until ``wanted`` is in it; at most 30 s."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(PATH=f"{BIN}:{os.environ['PATH']}", TERM="dumb", HOME=str(tmp_path), PS1="> ")
        os.chdir(tmp_path)
        os.execvp(command[0], command)
    shown, end = b"", time.monotonic() + 30

    def read_until(mark):
        nonlocal shown
        while mark not in shown and time.monotonic() < end:
            if select.select([terminal], [], [], 0.2)[0]:
                try:
                    shown += os.read(terminal, 65536)
                except OSError:
                    return

    try:
        os.write(terminal, f"{setup}; echo rea''dy\n".encode())
        read_until(b"ready\r\n")
        shown = b""
        os.write(terminal, keys.encode())
        read_until(wanted)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(terminal)
    return shown.decode(errors="replace")


INTERACTIVE = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(nfsd3d completion bash)"'),
    "zsh": (["zsh", "-f", "-i"], 'autoload -Uz compinit && compinit -u && eval "$(nfsd3d completion zsh)"'),
}


@pytest.mark.parametrize("shell", INTERACTIVE)
@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ("nfsd3d --config bri\t", "bridge "),
        ("nfsd3d distill=nf\t", "nfsd3d distill=nfsd "),
        ("nfsd3d prompts.perp\tt\t", "nfsd3d prompts.perp_neg=true "),
        ("nfsd3d view here-\t", "nfsd3d view here-it-is"),
        ("nfsd3d source_run=here-\t", "nfsd3d source_run=here-it-is"),
    ],
)
def test_the_tab_key(shell, keys, wanted, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "here-it-is").mkdir()
    command, setup = INTERACTIVE[shell]
    assert wanted in pressed(command, setup, keys, wanted.encode(), tmp_path)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("nfsd3d distill=nf", "distill=nfsd"),
        ("nfsd3d view here-", "here-it-is/"),
    ],
)
def test_fish(line, wanted, tmp_path):
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    (tmp_path / "here-it-is").mkdir()
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    script = f"nfsd3d completion fish | source; complete -C {line!r}"
    found = subprocess.run(
        ["fish", "--no-config", "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60
    )
    assert [entry.partition("\t")[0] for entry in found.stdout.splitlines()] == [wanted], found.stderr
