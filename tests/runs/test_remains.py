"""A directory with what an unstarted run left is unused; everything else in it is the user's, and stays."""

import json
import os

import pytest

from nfsd3d.errors import InputError
from nfsd3d.runs import identity, remains
from nfsd3d.runs.directory import check_unused, claim_folder


def unstarted(folder, status="interrupted", steps=0):
    """What a run that was interrupted before its first step may leave."""
    (folder / "checkpoints").mkdir()
    (folder / "summary.json").write_text(json.dumps({"status": status, "steps": steps}))
    (folder / "config.yaml").write_text("prompt: a red cube\n")
    for name in ("metrics.jsonl", "checkpoints/source.json", "checkpoints/step-000000.safetensors"):
        (folder / name).touch()
    for name in (".lock", "job.json", "checkpoints/.nfsd3d-7-host-ab.json"):
        (folder / name).write_text("{}")


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


@pytest.mark.parametrize("evidence", ["summary.json", identity.NAME])
def test_what_an_unstarted_run_left_is_removed(tmp_path, evidence):
    unstarted(tmp_path)
    if evidence == identity.NAME:  # a killed run has no summary
        (tmp_path / "summary.json").unlink()
        identity.write(tmp_path)
    check_unused(tmp_path)
    remains.remove(tmp_path)
    assert files(tmp_path) == {".lock", "job.json", "checkpoints/.nfsd3d-7-host-ab.json"}
    check_unused(tmp_path)


def test_a_sweep_does_not_take_the_directory_of_an_unstarted_run(tmp_path):
    unstarted(tmp_path)
    with pytest.raises(InputError, match="already used; choose another, or empty it"):
        claim_folder(tmp_path)


@pytest.mark.parametrize(
    "name", ["notes.txt", "mesh/model.glb", "checkpoints/mine.json", "checkpoints/step-000000.json"]
)
def test_beside_any_other_file_nothing_is_removed(tmp_path, name):
    unstarted(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("precious")
    before = files(tmp_path)
    with pytest.raises(InputError, match="already used"):
        check_unused(tmp_path)
    remains.remove(tmp_path)
    assert files(tmp_path) == before


@pytest.mark.parametrize(("status", "steps"), [("done", 0), ("diverged", 0), ("interrupted", 4), (None, 0)])
def test_a_run_with_a_result_is_not_removed(tmp_path, status, steps):
    unstarted(tmp_path, status, steps)
    before = files(tmp_path)
    remains.remove(tmp_path)
    assert files(tmp_path) == before and remains.found(tmp_path) is None


@pytest.mark.parametrize("kind", ["the user's own", "logged", "a folder", "a FIFO"])
def test_files_that_only_have_the_names_are_not_removed(tmp_path, kind):
    unstarted(tmp_path)
    if kind == "the user's own":  # no file shows that a run was here
        (tmp_path / "summary.json").unlink()
    elif kind == "logged":
        (tmp_path / "metrics.jsonl").write_text("{}")
    else:
        (tmp_path / "config.yaml").unlink()
        (tmp_path / "config.yaml").mkdir() if kind == "a folder" else os.mkfifo(tmp_path / "config.yaml")
    assert remains.found(tmp_path) is None
    remains.remove(tmp_path)
    assert (tmp_path / "config.yaml").exists()
