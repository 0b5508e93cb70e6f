"""The command that shows runs in the browser."""

import gc
import os
import signal
import socket
import subprocess
import sys
import urllib.request
import warnings
from importlib import util

import pytest
from tiny_runs import OFF

from nfsd3d.cli import view
from nfsd3d.cli.main import main
from nfsd3d.errors import InputError
from nfsd3d.jobs.manifest import new_manifest, write
from nfsd3d.settings import viewer
from nfsd3d.train.run import train_and_export


@pytest.fixture
def run(configure, tiny_prior, console):
    return train_and_export(configure(**OFF), console=console)


def test_a_run_is_a_scene(run):
    scene = view._scene(run, None)
    assert "a red cube" in scene.about and "step 6 of 6, nfsd, seed 0" in scene.about
    assert scene.mesh == run / "mesh" / "model.glb" and scene.radius == 1
    assert "step 4 of 6" in view._scene(run, 4).about


def test_a_page_is_served_until_the_interruption(run):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "nfsd3d", "view", str(run), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line == f"http://127.0.0.1:{port}  (Ctrl+C ends it)\n", process.stderr.read()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=20) as page:
            assert page.status == 200 and b"<html" in page.read(400)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and rest == "" and errors == "\ninterrupted by SIGINT\n", errors


def test_only_this_machine_is_listened_to(run):
    from nfsd3d.viewer.server import Viewer

    started = Viewer({"run": lambda: view._scene(run, None)}, viewer.LOCAL, 8571)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{started.port}", timeout=20) as page:
            assert page.status == 200
        other = socket.gethostbyname(socket.gethostname())
        if not other.startswith("127."):
            with pytest.raises(OSError), socket.create_connection((other, started.port), timeout=10):
                pass
    finally:
        started.close()
        # viser's server stops its event loop at once: a connection that it has not closed yet is closed by the garbage
        # collector, with a warning, here rather than in a later test.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


def test_runs_of_a_sweep_are_those_with_a_checkpoint(run, tmp_path):
    named = [("0-a", ["seed=0"], {"seed": "0"}), ("1-b", ["seed=1"], {"seed": "1"})]
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    write(new_manifest(sweep, "sweep", ["prompt=a red cube"], ["seed"], named))
    with pytest.raises(InputError, match=r"sweep: none of its 2 runs has a checkpoint yet"):
        view._runs(sweep)
    os.rename(run, sweep / "1-b")
    assert view._runs(sweep) == [sweep / "1-b"]


def test_names_are_what_differs(tmp_path):
    runs = [tmp_path / "a" / "x", tmp_path / "b" / "x"]
    assert [view._name(one, runs) for one in runs] == ["a/x", "b/x"]
    assert view._name(runs[0], runs[:1]) == "x"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{folder}"], "config.yaml"),
        (["{folder}", "--port", "0"], "--port: '0' must be a whole number, at least 1 and at most 65535"),
        ([], "RUN_DIR"),
    ],
)
def test_bad_input_is_one_line(arguments, told, tmp_path, capsys):
    assert main(["view", *(one.format(folder=tmp_path) for one in arguments)]) == 2
    printed = capsys.readouterr()
    assert told in printed.err and printed.err.count("\n") == 1 and printed.out == ""


def test_an_address_of_another_machine_is_refused(run, capsys):
    assert main(["view", str(run), "--host", "192.0.2.1"]) == 2
    assert capsys.readouterr().err.startswith("error: --host 192.0.2.1: cannot be listened on (")


def test_without_viser_its_installation_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(viewer, "find_spec", lambda name: None if name == "viser" else util.find_spec(name))
    assert main(["view", str(tmp_path)]) == 2
    assert "viser is not installed; install it with: pip install 'nfsd3d[viewer]'" in capsys.readouterr().err
