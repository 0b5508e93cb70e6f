"""A run with damaged files is resumed, with a warning, to the result of a run without damage."""

import itertools
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import OFF, final_tensors

from nfsd3d.errors import InputError, RunFailed
from nfsd3d.runs import checkpoints, directory, lock
from nfsd3d.runs.files import describe, storage_error
from nfsd3d.runs.metrics import read_metrics
from nfsd3d.runs.summary import read_summary
from nfsd3d.train import outcome, run, task
from nfsd3d.train.interrupts import Interrupted
from nfsd3d.train.previews import write_preview
from nfsd3d.train.run import train_and_export

STEPS = {"train.steps": 6, "train.log_every": 1, "train.checkpoint_every": 2, "train.keep_checkpoints": 9}

pytestmark = pytest.mark.usefixtures("tiny_prior")


@pytest.fixture
def finished(configure, console):
    """A finished run: its configuration, directory, and final tensors."""
    config = configure(**OFF, **STEPS)
    run_dir = train_and_export(config, console=console)
    return config, run_dir, final_tensors(run_dir)


def resume_from(step, config, run_dir, console):
    """Resumes the run as if it had been killed after ``step``."""
    checkpoints.remove_later(run_dir / "checkpoints", step)
    return train_and_export(config, resume=run_dir, console=console)


def assert_same_result(run_dir, expected, steps=(1, 2, 3, 4, 5, 6)):
    found = checkpoints.newest(run_dir)
    assert found.steps == 6 and found.tensors.keys() == expected.keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in expected.items())
    assert tuple(line["step"] for line in read_metrics(run_dir / "metrics.jsonl")) == tuple(steps)
    assert read_summary(run_dir)["status"] == "done"


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_with_a_damaged_newest_checkpoint_a_run_resumes_from_the_one_before(finished, console, capsys, suffix):
    config, run_dir, expected = finished
    path = run_dir / "checkpoints" / f"step-000006.{suffix}"
    path.write_bytes(path.read_bytes()[:100])
    train_and_export(config, resume=run_dir, console=console)
    (warning,) = capsys.readouterr().err.splitlines()
    assert f"step-000006.{suffix} is damaged" in warning and warning.endswith("step 4 is used instead")
    assert_same_result(run_dir, expected)


def test_without_an_intact_checkpoint_nothing_is_changed(finished, console):
    config, run_dir, _ = finished
    for path in (run_dir / "checkpoints").glob("*.json"):
        path.write_bytes(path.read_bytes()[:100])
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"no intact checkpoint .*step-000006.*start the run anew"):
        train_and_export(config, resume=run_dir, console=console)
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def _bad_byte(lines):
    lines[1] = lines[1].replace(b"opacity", b"opa\xffity")


def _nulls(lines):
    lines[3] = b"\0" * (len(lines[3]) - 1) + b"\n"


def _truncated(lines):
    lines[2:] = [lines[2][:20]]


@pytest.mark.parametrize(
    ("damage", "words", "steps"),
    [
        (_bad_byte, "1 unreadable line is dropped", (1, 3, 4, 5, 6)),
        (_nulls, "1 unreadable line is dropped and there are no lines of step 4", (1, 2, 3, 5, 6)),
        (_truncated, "there are no lines of steps 3 to 4", (1, 2, 5, 6)),
    ],
)
def test_with_damaged_metrics_and_summary_a_run_resumes(finished, console, capsys, damage, words, steps):
    config, run_dir, expected = finished
    path = run_dir / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    damage(lines)
    path.write_bytes(b"".join(lines))
    (run_dir / "summary.json").write_text("[]")
    resume_from(4, config, run_dir, console)
    of_summary, of_metrics = capsys.readouterr().err.splitlines()
    assert "summary.json is damaged" in of_summary and of_metrics == f"{path} is damaged: {words}"
    assert_same_result(run_dir, expected, steps)
    assert all(isinstance(json.loads(line), dict) for line in path.read_text().splitlines())


def test_a_run_whose_directory_is_removed_does_not_make_it_again(configure, console, monkeypatch):
    config = configure(**OFF, **STEPS)
    original, count = task.step_loss, iter(range(100))

    def removing(*arguments):
        if next(count) == 2:
            shutil.rmtree(config.run_dir)
        return original(*arguments)

    monkeypatch.setattr(task, "step_loss", removing)
    with pytest.raises(RunFailed):
        train_and_export(config, console=console)
    assert not Path(config.run_dir).exists()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("RLIMIT_FSIZE", 3000, "File too large"), ("RLIMIT_NOFILE", 3, "Too many open files")],
)
def test_a_run_that_cannot_write_ends_on_one_line_and_resumes_to_the_same_result(
    finished, console, monkeypatch, name, value, words
):
    """A limit of the system is lowered during a step, and lifted before the run is resumed."""
    resource = pytest.importorskip("resource")
    config, run_dir, expected = finished
    limit, original, count = getattr(resource, name), task.step_loss, itertools.count(1)
    former = resource.getrlimit(limit)

    def starving(*arguments):
        if next(count) == 2:
            resource.setrlimit(limit, (value, former[1]))
        return original(*arguments)

    with monkeypatch.context() as patch, pytest.raises(RunFailed, match=f"{words}.*--resume") as failed:
        patch.setattr(task, "step_loss", starving)
        try:
            resume_from(2, config, run_dir, console)
        finally:
            resource.setrlimit(limit, former)
    assert "\n" not in str(failed.value)
    train_and_export(config, resume=run_dir, console=console)
    assert_same_result(run_dir, expected)


def test_a_run_whose_directory_is_moved_away_resumes_when_it_is_back(finished, console, monkeypatch):
    config, run_dir, expected = finished
    aside, original = run_dir.with_name("aside"), task.step_loss

    def moving(*arguments):
        if run_dir.exists():
            run_dir.rename(aside)
        return original(*arguments)

    with monkeypatch.context() as patch, pytest.raises(RunFailed, match=r"gone|No such file"):
        patch.setattr(task, "step_loss", moving)
        resume_from(2, config, run_dir, console)
    assert not run_dir.exists()  # it is not made again
    aside.rename(run_dir)
    train_and_export(config, resume=run_dir, console=console)
    assert_same_result(run_dir, expected)


@pytest.mark.parametrize("harm", ["removed", "moved with the directory"])
def test_a_run_that_has_lost_its_lock_says_how_to_continue(finished, console, monkeypatch, harm):
    config, run_dir, expected = finished
    monkeypatch.setattr(lock, "PAUSE", 0.01)
    original, place = task.step_loss, run_dir.with_name("elsewhere")

    def losing(*arguments):
        if harm == "removed":
            (run_dir / lock.NAME).unlink(missing_ok=True)
        elif run_dir.exists():
            run_dir.rename(place)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(task, "step_loss", losing)
        with pytest.raises(RunFailed, match=r"--resume") as failed:
            resume_from(4, config, run_dir, console)
    assert ("file .lock is gone" in str(failed.value)) == (harm == "removed")
    resumed = run_dir if harm == "removed" else place
    train_and_export(config, resume=resumed, console=console)
    assert_same_result(resumed, expected)


def test_a_preview_is_not_written_to_a_directory_that_another_process_took_over(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PAUSE", 0.0)
    with lock.owned(tmp_path):
        (tmp_path / lock.NAME).unlink()
        with pytest.raises(RunFailed, match="may belong to another process"):
            write_preview(tmp_path, 1, np.zeros((2, 2, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_a_run_keeps_its_directory_when_the_process_changes_its_own(configure, console, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(outcome.sys, "argv", ["nfsd3d"])
    (tmp_path / "other").mkdir()
    original = task.step_loss

    def leaving(*arguments):
        os.chdir(tmp_path / "other")
        return original(*arguments)

    config = configure(**OFF, **STEPS).replace(run_dir="relative/run")
    with monkeypatch.context() as patch, directory.claimed(config, "x") as claimed:
        patch.setattr(task, "step_loss", leaving)
        train_and_export(claimed, console=console)
    place = tmp_path / "relative/run"
    assert read_summary(place)["status"] == "done" and list((tmp_path / "other").iterdir()) == []
    os.chdir(tmp_path)
    assert outcome.resume_command(place) == "nfsd3d --resume relative/run"


@pytest.mark.parametrize("name", ["step-000006.json", "step-000006.safetensors", "metrics.jsonl", "summary.json"])
def test_a_fifo_in_place_of_a_file_stops_no_reader(finished, console, capsys, name):
    config, run_dir, expected = finished
    path = next(run_dir.rglob(name))
    path.unlink()
    os.mkfifo(path)
    if name == "metrics.jsonl":
        with pytest.raises(RunFailed, match=r"metrics\.jsonl: not a regular file.*--resume"):
            train_and_export(config, resume=run_dir, console=console)
        with pytest.raises(InputError, match=r"metrics\.jsonl cannot be read \(not a regular file\)"):
            read_metrics(path)
        return
    train_and_export(config, resume=run_dir, console=console)
    assert f"{name} cannot be read (not a regular file)" in capsys.readouterr().err
    assert_same_result(run_dir, expected)


def test_a_run_that_was_interrupted_while_it_loaded_starts_anew_in_its_directory(configure, console, monkeypatch):
    config = configure(**OFF, **STEPS)

    def interrupt(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="start it anew"):
        patch.setattr(run, "build_parts", interrupt)
        with directory.claimed(config, "x") as claimed:
            train_and_export(claimed, console=console)
    run_dir = Path(config.run_dir)
    assert read_summary(run_dir)["status"] == "interrupted"
    with directory.claimed(config, "x") as claimed:
        train_and_export(claimed, console=console)
    assert read_summary(run_dir)["status"] == "done"


def test_an_error_of_the_file_system_is_found_behind_a_librarys_own():
    try:
        try:
            raise OSError(28, "No space left on device", "model")
        except OSError as error:
            raise RuntimeError("import failed") from error
    except RuntimeError as error:
        assert describe(storage_error(error)) == "model: No space left on device"
    assert storage_error(FileNotFoundError(2, "No such file")) is None
