"""One job in this process: what it leaves to others, and what it says when its directory cannot be used."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nfsd3d.jobs import perform as module
from nfsd3d.jobs.controller import run
from nfsd3d.jobs.engines.base import EngineSettings
from nfsd3d.jobs.manifest import Manifest, new_manifest, read, write
from nfsd3d.jobs.perform import perform
from nfsd3d.jobs.state import states
from nfsd3d.runs.lock import owned


@pytest.fixture
def two_jobs(tmp_path) -> Manifest:
    """A set of two jobs, of which none has begun."""
    write(new_manifest(tmp_path, "sweep", ["x y"], [], [(f"{number}-job", [], {}) for number in range(2)]))
    return read(tmp_path)


def finish(arguments: list[str]) -> None:
    """A job that writes that it is done."""
    Path(arguments[-1].removeprefix("run_dir="), "summary.json").write_text('{"status": "done"}')


def full(arguments: list[str]) -> None:
    """A job on a full disk."""
    raise OSError(28, "No space left on device", "summary.json")


def test_a_job_that_is_done_is_not_done_again(two_jobs):
    folder = two_jobs.folder
    assert perform(finish, folder, 0, engine="test") == ""
    assert perform(full, folder, 0, engine="test") == ""
    assert json.loads((folder / "0-job" / "job.json").read_text())["attempt"] == 1


def test_a_job_waits_for_the_worker_of_a_controller_that_was_killed(two_jobs):
    run_dir = two_jobs.run_dir(two_jobs.jobs[0])
    run_dir.mkdir()
    held, released = threading.Event(), []

    def worker() -> None:
        with owned(run_dir):
            held.set()
            time.sleep(0.3)
            released.append(time.monotonic())

    thread = threading.Thread(target=worker)
    thread.start()
    held.wait()
    assert perform(finish, two_jobs.folder, 0, engine="test") == ""
    thread.join()
    assert released and [state.status for _, state in states(two_jobs)] == ["done", "pending"]


def test_a_job_that_another_process_keeps_is_left_to_it(two_jobs, monkeypatch):
    monkeypatch.setattr(module, "ORPHANED", 0.0)
    run_dir = two_jobs.run_dir(two_jobs.jobs[0])
    run_dir.mkdir()
    with owned(run_dir):
        assert perform(full, two_jobs.folder, 0, engine="test") == ""
    assert not (run_dir / "job.json").exists()


def test_why_a_directory_cannot_be_used_is_returned(two_jobs):
    folder = two_jobs.folder
    (folder / "0-job").touch()
    assert perform(finish, folder, 0, engine="test") == f"{folder / '0-job'}: File exists"
    shutil.rmtree(folder)
    assert perform(finish, folder, 1, engine="test").startswith(f"{folder}: holds no manifest.jsonl; give the folder")


def test_a_job_whose_directory_vanishes_is_not_over(two_jobs):
    run_dir = two_jobs.run_dir(two_jobs.jobs[0])
    reason = f"it ended without an outcome in {run_dir}"
    assert perform(lambda arguments: shutil.rmtree(run_dir), two_jobs.folder, 0, engine="test") == reason
    assert perform(lambda arguments: None, two_jobs.folder, 1, engine="test").startswith("it ended without")
    assert [state.status for _, state in states(two_jobs)] == ["pending", "interrupted"]


def test_an_error_of_the_disk_is_the_reason_of_a_failed_job(two_jobs):
    assert perform(full, two_jobs.folder, 0, engine="test") == ""
    assert [state.reason for _, state in states(two_jobs)] == ["[Errno 28] No space left on device: 'summary.json'", ""]


def test_why_a_process_died_is_kept_and_told_by_the_status(two_jobs, jobs_here, monkeypatch, capsys):
    def dying(command, folder, number, engine):
        if number == 1:
            return perform(command, folder, number, engine=engine)
        (folder / "0-job").mkdir(exist_ok=True)
        return "its process was ended by SIGKILL"

    monkeypatch.setattr("tiny_runs.perform", dying)
    assert run(two_jobs, EngineSettings(), finish) == {"interrupted": 1, "done": 1}
    assert [(state.status, state.reason) for _, state in states(two_jobs)] == [
        ("interrupted", "its process was ended by SIGKILL"),
        ("done", ""),
    ]
    assert "0-job: its process was ended by SIGKILL; started again" in capsys.readouterr().err


def test_the_controlling_process_of_a_sweep_imports_no_torch(tmp_path):
    code = (
        "import sys; from nfsd3d.cli.multirun import multirun\n"
        "from nfsd3d.config.experiments import find_experiment\n"
        "settings = ['machine=cpu', 'backend=numba', 'prior=shapes', 'prompt=a red cube', 'seed=0,1']\n"
        "multirun(find_experiment('nfsd_2d'), [*settings, 'hydra.launcher.workers=2'], len)  # jobs that do nothing\n"
        "print(sorted({'torch', 'numba', 'diffusers', 'transformers'} & {*sys.modules}))"
    )
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert "2 jobs: 2 interrupted" in done.stdout and len(list(tmp_path.rglob("job.log"))) == 2
