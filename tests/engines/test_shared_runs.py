"""Jobs whose runs several processes share: one for each of their GPUs, which are pretended here."""

import json
import os
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from tiny_runs import final_tensors

from nfsd3d.cli.main import main, run_command
from nfsd3d.jobs import cores
from nfsd3d.jobs.controller import ENGINES, run
from nfsd3d.jobs.engines.base import EngineSettings
from nfsd3d.jobs.manifest import Manifest, new_manifest, read, write
from nfsd3d.jobs.state import state_of
from nfsd3d.runs import checkpoints
from nfsd3d.runs.lock import live_owner
from nfsd3d.runs.metrics import read_metrics

pytestmark = [pytest.mark.engines, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

TINY = (
    *(
        "--config",
        "nfsd_2d",
        "generator=latent",
        "machine=cpu",
        "prior=shapes",
        "train.batch_size=2",
        "train.log_every=1",
    ),
    *("export.turntable=false", "export.report=false", "train.tensorboard=false", "prompt=a red cube"),
    *("train.steps=30", "train.checkpoint_every=10"),
)


@pytest.fixture(params=["local", "joblib", "submitit_local"])
def shared(request, monkeypatch) -> EngineSettings:
    """The settings of each installed engine that gives a job two GPUs."""
    if (package := ENGINES[request.param][1]) is not None and find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(cores, "visible_gpus", lambda: 2)
    return EngineSettings(engine=request.param, gpus=2, threads=2)


def one_job(folder: Path, *arguments: str) -> Manifest:
    folder.mkdir()
    write(new_manifest(folder, "sweep", TINY, ["job"], [("job", arguments, {"job": "0"})]))
    return read(folder)


def steps_of(manifest: Manifest) -> list[int]:
    return [line["step"] for line in read_metrics(manifest.folder / "job" / "metrics.jsonl")]


def ranks_of(manifest: Manifest) -> dict[int, int]:
    """The process numbers of the run's ranks."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            variables = dict(
                line.split(b"=", 1) for line in (path / "environ").read_bytes().split(b"\0") if b"=" in line
            )
        except OSError:
            continue
        if b"nfsd3d.jobs.rank" in words and b"RANK" in variables and str(manifest.folder).encode() in words:
            found[int(variables[b"RANK"])] = int(path.name)
    return found


def test_the_processes_of_a_job_compute_what_one_computes(shared, tmp_path):
    pair, single = one_job(tmp_path / "two"), one_job(tmp_path / "one")
    assert run(pair, shared, run_command) == {"done": 1}
    assert run(single, EngineSettings(threads=1), run_command) == {"done": 1}
    assert steps_of(pair) == steps_of(single) == list(range(1, 31))
    found, expected = final_tensors(pair.folder / "job"), final_tensors(single.folder / "job")
    for name, value in expected.items():
        assert found[name].float().sub(value.float()).abs().max() <= 1e-4, name
    log = (pair.folder / "job" / "job.log").read_text()
    assert log.count("$ nfsd3d") == 1 and "Traceback" not in log


@pytest.mark.parametrize(("shared", "rank"), [("local", 0), ("submitit_local", 1)], indirect=["shared"])
def test_a_job_that_lost_a_process_goes_on_from_its_checkpoint(shared, tmp_path, capfd, rank):
    """Killed once, at its twelfth step or later; the steps since the checkpoint are repeated if the first one died."""
    manifest = one_job(tmp_path / "set", "train.steps=300")  # it lasts long enough to be killed on a fast machine
    killed = []

    def kill() -> None:
        if not killed and (tmp_path / "set/job/metrics.jsonl").exists() and steps_of(manifest)[-1:] > [11]:
            killed.append(os.kill(ranks_of(manifest)[rank], signal.SIGKILL))

    assert run(manifest, shared, run_command, on_look=kill) == {"done": 1} and killed
    assert steps_of(manifest) == list(range(1, 301))
    assert "started again" in capfd.readouterr().err
    assert json.loads((tmp_path / "set/job/job.json").read_text())["attempt"] == 2
    undisturbed = one_job(tmp_path / "undisturbed", "train.steps=300")
    run(undisturbed, shared, run_command)
    found, expected = final_tensors(tmp_path / "set/job"), final_tensors(tmp_path / "undisturbed/job")
    assert all(found[name].equal(value) for name, value in expected.items())


@pytest.mark.parametrize("shared", ["local"], indirect=True)
def test_a_job_that_fails_in_all_its_processes_says_why_once(shared, tmp_path):
    manifest = one_job(tmp_path / "set", "train.batch_size=3")
    assert run(manifest, shared, run_command) == {"failed": 1}
    state = state_of(manifest, manifest.jobs[0])
    assert "train.batch_size=3: 2 processes" in state.reason
    assert (tmp_path / "set/job/job.log").read_text().count("error: train.batch_size=3") == 1


@pytest.mark.parametrize("shared", ["local", "joblib"], indirect=True)
def test_a_cancelled_set_ends_its_processes_after_a_checkpoint(shared, tmp_path):
    manifest = one_job(tmp_path / "set", "train.steps=3000", "train.checkpoint_every=3000")
    seen = []

    def cancel() -> None:
        if not seen and (tmp_path / "set/job/metrics.jsonl").exists() and steps_of(manifest):
            seen.extend(ranks_of(manifest).values())
            (tmp_path / "set/cancelled").touch()

    assert run(manifest, shared, run_command, on_look=cancel) == {"cancelled": 1}
    assert len(seen) == 2 and not ranks_of(manifest) and live_owner(tmp_path / "set/job") is None
    assert checkpoints.newest(tmp_path / "set/job").steps == steps_of(manifest)[-1] < 3000


@pytest.mark.parametrize("shared", ["local", "submitit_local"], indirect=True)
def test_when_the_process_that_was_given_the_job_is_killed_the_others_save_and_end(shared, tmp_path):
    manifest = one_job(tmp_path / "set", "train.steps=3000", "train.checkpoint_every=3000")
    settings = EngineSettings(engine=shared.engine, gpus=2, threads=2, retries=0)

    def kill() -> None:
        if (tmp_path / "set/job/metrics.jsonl").exists() and steps_of(manifest) and (ranks := ranks_of(manifest)):
            torchrun = int(Path(f"/proc/{ranks[0]}/stat").read_text().rpartition(")")[2].split()[1])
            job = int(Path(f"/proc/{torchrun}/stat").read_text().rpartition(")")[2].split()[1])
            os.kill(job, signal.SIGKILL)

    run(manifest, settings, run_command, on_look=kill)
    deadline = time.monotonic() + 60
    while ranks_of(manifest):
        assert time.monotonic() < deadline, "its processes go on"
        time.sleep(0.2)
    assert checkpoints.newest(tmp_path / "set/job").steps == steps_of(manifest)[-1] < 3000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["-m", "seed=0,1", "prompt=a red cube", "hydra.launcher.gpus=2", "machine=cpu", "train.batch_size=3"],
            "train.batch_size=3: 2 processes",
        ),
        (["compare", "--tier", "2d", "--gpus", "2"], "--gpus 2: a job of a comparison has one process"),
    ],
)
def test_what_cannot_be_shared_is_refused_before_anything_begins(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(cores, "visible_gpus", lambda: 2)
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())
