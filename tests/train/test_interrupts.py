"""Signals end a run after its checkpoint is saved."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from nfsd3d.train import interrupts
from nfsd3d.train.interrupts import STOP_SIGNALS, Interrupted, stop_requests


def send(*signums):
    for signum in signums:
        os.kill(os.getpid(), signum)


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_signal_sets_a_flag_and_handlers_are_restored(signum):
    before = signal.getsignal(signum)
    with stop_requests() as stop:
        send(signum)
        assert stop.signum == signum
        with pytest.raises(Interrupted, match=signal.Signals(signum).name) as interruption:
            stop.check()
    assert interruption.value.exit_code == 128 + signum
    assert signal.getsignal(signum) is before


def test_repeated_signals_do_not_cut_a_save_short(monkeypatch):
    monkeypatch.setattr(interrupts, "PATIENCE", 60.0)
    with stop_requests() as stop:
        send(signal.SIGTERM, signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
        assert stop.signum == signal.SIGTERM


def test_a_second_ctrl_c_after_the_patience_ends_at_once(monkeypatch):
    monkeypatch.setattr(interrupts, "PATIENCE", 0.05)
    with stop_requests():
        send(signal.SIGINT)
        time.sleep(0.06)
        send(signal.SIGTERM, signal.SIGUSR2)
        with pytest.raises(Interrupted, match="twice") as interruption:
            send(signal.SIGINT)
    assert interruption.value.exit_code == 130


def test_ignored_signals_stay_ignored(monkeypatch):
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests() as stop:
            send(signal.SIGHUP)
            assert stop.signum is None
    finally:
        signal.signal(signal.SIGHUP, former)


def test_a_handler_of_another_library_is_called_when_the_checkpoint_is_saved():
    calls = []
    former = signal.signal(signal.SIGUSR2, lambda signum, frame: calls.append(signum))
    try:
        with stop_requests() as stop:
            send(signal.SIGUSR2)
            assert stop.signum == signal.SIGUSR2 and calls == []
        assert calls == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, former)


def test_an_inner_block_takes_over_a_signal_that_came_before_it():
    with pytest.raises(Interrupted), stop_requests() as outer, outer.at_once():
        with contextlib.suppress(Interrupted):  # as a library might
            send(signal.SIGTERM)
        with stop_requests() as stop:
            assert stop.signum == signal.SIGTERM


def test_repeated_signals_after_an_inner_block_interrupt_nothing():
    """As a process group and a parent send them, while the summary of an interrupted run is written."""
    undisturbed = False
    with pytest.raises(Interrupted), stop_requests() as outer, outer.at_once():
        try:
            with stop_requests() as stop:
                send(signal.SIGTERM)
                stop.check()
        finally:
            send(signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
            undisturbed = True
    assert undisturbed


IMPORTING = """
import sys, os, signal, time
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "nfsd3d.cli.main":
            print("importing", flush=True)
            for _ in range(300):  # Python code between the waits, as imports have: one long wait can begin
                time.sleep(0.1)  # after the signal has come and before its handler runs
sys.meta_path.insert(0, Slow())
from nfsd3d.__main__ import main
sys.exit(main(["--version"]))
"""


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_signal_during_the_imports_is_told_on_one_line(signum):
    command = [sys.executable, "-c", IMPORTING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"importing\n"
        process.send_signal(signum)
        _, error = process.communicate(timeout=20)
    assert process.returncode == 128 + signum
    assert error.decode().strip() == f"interrupted by {signal.Signals(signum).name}"


OTHER_SYSTEM = """
import builtins, os, pathlib, signal, sys
for name in ('SIGHUP', 'SIGUSR1', 'SIGUSR2'):
    delattr(signal, name)
for name in ('sched_setaffinity', 'getuid'):
    if hasattr(os, name):
        delattr(os, name)
imported = builtins.__import__
# Other packages have code of their own for Windows, which cannot run here.
def without(name, globals=None, *rest, **options):
    if name in ('fcntl', 'resource') and (globals or {}).get('__name__', '').startswith('nfsd3d'):
        raise ImportError(name)
    return imported(name, globals, *rest, **options)
builtins.__import__ = without
os.environ['PATH'] = '/nowhere'  # without ps
read = pathlib.Path.read_text
def read_text(self, *arguments, **options):
    if str(self).startswith('/proc'):
        raise FileNotFoundError(2, 'no such file', str(self))
    return read(self, *arguments, **options)
pathlib.Path.read_text = read_text
exists = pathlib.Path.exists
pathlib.Path.exists = lambda self: not str(self).startswith('/proc') and exists(self)
from nfsd3d.__main__ import main
from nfsd3d.runs import process
assert process.start_time(os.getpid()) is None and ' ' in process.machine()
if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
"""


def test_a_system_without_what_linux_has_makes_resumes_and_shows_a_run(tmp_path):
    """As Windows, which has neither fcntl, resource, /proc, ps and affinities, nor most signals."""
    settings = ["prompt=a red cube", "machine=cpu", "prior=shapes", "run_dir=run", "train.steps=4"]
    settings += ["train.checkpoint_every=2", "generator.occupancy_warmup=1", "train.diverged.opacity_above=1.0"]
    settings += ["export.resolution=24", "export.formats=[glb,obj,stl]", "export.turntable=false"]
    settings += ["train.tensorboard=false", "export.mesh=false", "export.report=false"]

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-c", OTHER_SYSTEM, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(*settings)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "done" and summary["steps"] == 4
    run("--resume", "run", "train.steps=6", "export.mesh=true", "export.report=true")
    assert json.loads((tmp_path / "run/summary.json").read_text())["steps"] == 6
    assert {path.suffix for path in (tmp_path / "run/mesh").iterdir()} >= {".glb", ".obj", ".stl"}


def test_a_reader_that_goes_away_ends_nothing():
    command = f"{sys.executable} -m nfsd3d --help | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "0" and done.stderr == ""


LATE_SIGNAL = """
import sys, os, signal
import nfsd3d.cli.main as commands
from nfsd3d.__main__ import main
from nfsd3d.train.interrupts import stop_requests
def run(arguments):
    with stop_requests():  # as a run that has written its last file
        os.kill(os.getpid(), signal.SIGTERM)
    return 0
commands.main = run
sys.exit(main([]))
"""


def test_a_signal_after_the_last_check_of_a_run_leaves_its_exit_code():
    done = subprocess.run([sys.executable, "-c", LATE_SIGNAL], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_streams_that_were_closed_before_the_start_end_nothing():
    command = f"{sys.executable} -m nfsd3d --help >&- 2>&-; echo $?"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_what_the_encoding_of_the_output_lacks_is_escaped():
    settings = ["prompt=a red cube", "run_dir=würfel", "machine=cpu", "prior=shapes", "dry_run=true"]
    done = subprocess.run(
        [sys.executable, "-m", "nfsd3d", *settings],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert r"# run directory: w\xfcrfel" in done.stdout
