"""Jobs on processes of this machine: what ends, dies, is interrupted or cancelled, and is gone on with."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nfsd3d.cli.main import main, run_command
from nfsd3d.errors import InputError
from nfsd3d.jobs.controller import run
from nfsd3d.jobs.engines import local
from nfsd3d.jobs.engines.base import EngineSettings
from nfsd3d.jobs.manifest import Manifest, new_manifest, read, write
from nfsd3d.jobs.state import states

TINY = (
    *("--config", "nfsd_2d", "machine=cpu", "prior=shapes", "train.batch_size=1", "train.checkpoint_every=2"),
    *("export.turntable=false", "export.report=false", "train.tensorboard=false", "prompt=a red cube"),
)


def jobs_of(folder: Path, *arguments: tuple[str, ...]) -> Manifest:
    folder.mkdir(exist_ok=True)
    named = [(f"{number}-job", own, {"job": str(number)}) for number, own in enumerate(arguments)]
    manifest = new_manifest(folder, "sweep", TINY, ["job"], named)
    write(manifest)
    return read(folder)


def statuses(manifest: Manifest) -> list[str]:
    return [state.status for _, state in states(manifest)]


def test_a_job_that_fails_does_not_stop_the_others_and_its_reason_is_kept(tmp_path, capfd):
    wrong = ("train.steps=2", "train.batch_size=0")
    manifest = jobs_of(tmp_path / "set", ("train.steps=2",), wrong, ("train.steps=3", "seed=1"), ("train.steps=2",))
    assert statuses(manifest) == ["pending"] * 4
    (tmp_path / "set" / "3-job").touch()  # where its directory should be
    counts = run(manifest, EngineSettings(workers=2), run_command)
    assert statuses(manifest) == ["done", "failed", "done", "pending"]
    assert counts == {"done": 2, "failed": 1, "pending": 1}
    printed = capfd.readouterr().err
    assert "3-job: pending: " in printed and "File exists" in printed and "Traceback" not in printed
    failed = [state for _, state in states(manifest)][1]
    assert failed.reason.startswith("train.batch_size=0")
    log = (tmp_path / "set" / "1-job" / "job.log").read_text()
    assert "error: train.batch_size=0" in log and "'prompt=a red cube'" in log  # a command line for a shell


def controller(folder: Path) -> subprocess.Popen[str]:
    code = (
        "import sys; from pathlib import Path; from nfsd3d.jobs.controller import run\n"
        "from nfsd3d.jobs.engines.base import EngineSettings; from nfsd3d.jobs.manifest import read\n"
        "from nfsd3d.cli.main import main, run_command\n"
        "run(read(Path(sys.argv[1])), EngineSettings(workers=1, threads=1), run_command)"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture
def long_job(tmp_path):
    """A controller with a job of 2,000 steps, which has begun to train."""
    manifest = jobs_of(tmp_path / "set", ("train.steps=2000", "train.log_every=1"))
    process = controller(manifest.folder)
    run_dir = manifest.folder / "0-job"
    wait_for(lambda: (run_dir / "metrics.jsonl").exists() and (run_dir / "metrics.jsonl").stat().st_size > 0)
    yield manifest, process, json.loads((run_dir / "job.json").read_text())["pid"]
    process.kill()
    process.communicate()


def test_a_worker_ends_with_a_controller_that_is_killed_and_saves_its_run(long_job):
    manifest, process, worker = long_job
    assert statuses(manifest) == ["running"]
    process.kill()
    wait_for(lambda: not Path(f"/proc/{worker}").exists() if Path("/proc/self").exists() else True)
    wait_for(lambda: statuses(manifest) == ["interrupted"])
    saved = list((manifest.folder / "0-job" / "checkpoints").glob("step-*.json"))
    assert max(int(path.stem.removeprefix("step-")) for path in saved) > 0


def test_an_interrupted_controller_ends_its_workers_with_a_checkpoint_and_says_how_to_go_on(long_job):
    manifest, process, _ = long_job
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate(timeout=60)
    assert f"go on with: nfsd3d sweep resume {manifest.folder}" in printed
    assert statuses(manifest) == ["interrupted"]


def test_a_sweep_that_is_cancelled_ends_with_a_checkpoint(long_job, capsys):
    manifest, process, _ = long_job
    assert main(["sweep", "status", str(manifest.folder)]) == 0
    assert "1 job: 1 running" in capsys.readouterr().out
    assert main(["sweep", "cancel", str(manifest.folder)]) == 0
    printed = capsys.readouterr()
    assert "1 job: 1 cancelled" in printed.out and f"nfsd3d sweep resume {manifest.folder}" in printed.err
    assert process.wait(timeout=60) == 0
    assert len(list((manifest.folder / "0-job" / "checkpoints").glob("step-*.safetensors"))) > 0


def test_a_job_that_hangs_is_killed_when_its_controller_is_to_end(tmp_path, monkeypatch):
    (tmp_path / "hanging.py").write_text(
        "import pathlib, signal, time\n"
        "def job(arguments):\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "    pathlib.Path(arguments[-1].removeprefix('run_dir='), 'here').touch()\n"
        "    time.sleep(1000)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(local, "PATIENCE", 0.5)
    manifest = jobs_of(tmp_path / "set", (), ())
    with local.LocalEngine(EngineSettings(threads=1), importlib.import_module("hanging").job) as engine:
        engine.submit(manifest.folder, [0, 1])
        wait_for((manifest.folder / "0-job" / "here").exists)
        engine.stop()
    assert statuses(manifest) == ["interrupted", "pending"]


def test_a_second_controller_is_refused(long_job):
    manifest, process, _ = long_job
    with pytest.raises(InputError, match=f"in use by process {process.pid}"):
        run(manifest, EngineSettings(), run_command)


@pytest.mark.engines
def test_a_killed_worker_is_started_again_and_ends_as_one_that_was_not(tmp_path):
    steps = ("train.steps=60", "train.log_every=1")
    manifest = jobs_of(tmp_path / "set", steps)
    process = controller(manifest.folder)
    log = manifest.folder / "0-job" / "metrics.jsonl"
    wait_for(lambda: log.exists() and log.read_bytes().count(b"\n") > 5)
    os.kill(json.loads((manifest.folder / "0-job" / "job.json").read_text())["pid"], signal.SIGKILL)
    _, printed = process.communicate(timeout=120)
    assert "ended by SIGKILL" in printed and "started again" in printed
    assert statuses(manifest) == ["done"]
    assert json.loads((manifest.folder / "0-job" / "job.json").read_text())["attempt"] == 2

    alone = jobs_of(tmp_path / "alone", steps)
    run(alone, EngineSettings(threads=1), run_command)
    last = "checkpoints/step-000060.safetensors"
    assert (manifest.folder / "0-job" / last).read_bytes() == (alone.folder / "0-job" / last).read_bytes()
