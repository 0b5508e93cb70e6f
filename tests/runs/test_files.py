"""Files are written atomically, and what killed processes leave is removed."""

import os
import socket
import subprocess
import sys

import pytest

from nfsd3d.runs import files
from nfsd3d.runs.files import remove_temporaries, replacing, write_json, write_text
from nfsd3d.runs.lock import owned

KILLED_WHILE_WRITING = """
import sys, time
from pathlib import Path
from nfsd3d.runs.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half of it")
    print("writing", flush=True)
    time.sleep(60)
"""


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_failed_write_leaves_the_former_content_alone(tmp_path):
    write_text(tmp_path / "a.txt", "former")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert (tmp_path / "a.txt").read_text() == "former" and names(tmp_path) == ["a.txt"]


def test_a_removed_directory_is_not_made_again(tmp_path):
    for path in (tmp_path / "run" / "summary.json", tmp_path / "run" / "checkpoints" / "step.json"):
        with pytest.raises(FileNotFoundError):
            write_json(path, {})
    assert names(tmp_path) == [] and not (tmp_path / "run").exists()


@pytest.mark.parametrize("folder", [".", "mesh", "checkpoints"])
def test_only_the_temporaries_of_dead_processes_are_removed(tmp_path, folder):
    place = tmp_path / folder
    place.mkdir(exist_ok=True)
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(place / "model.glb")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "writing\n"
        (place / "model.json").write_text("{}")
        (temporary,) = [path for path in place.iterdir() if path.name.startswith(".nfsd3d-")]
        if folder != "checkpoints":  # there only the owner writes
            remove_temporaries(tmp_path)
            assert temporary.exists()
        writer.kill()
    remove_temporaries(tmp_path)
    assert [path.name for path in place.iterdir() if path.is_file()] == ["model.json"]


def test_the_owner_removes_all_temporaries_of_checkpoints_and_previews(tmp_path):
    host = "another-host"
    for folder in ("checkpoints", "previews", "mesh"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f".nfsd3d-1-{host}-abc.png").touch()
        (tmp_path / folder / f".nfsd3d-{os.getpid()}-{host}-abc.png").touch()
        (tmp_path / folder / ".step-000004-abcd_123.png").touch()  # version 0.1
        (tmp_path / folder / ".nfs0001").touch()  # a network file system's own
        (tmp_path / folder / "step-000004.png").touch()
    remove_temporaries(tmp_path)
    for folder in ("checkpoints", "previews"):
        assert names(tmp_path / folder) == [".nfs0001", "step-000004.png"]
    assert len(names(tmp_path / "mesh")) == 5


def test_temporaries_of_another_container_with_this_host_name_stay(tmp_path, monkeypatch):
    there = files.temporary_path(tmp_path / "model.glb")
    monkeypatch.setattr(files.os, "readlink", lambda path: "pid:[1]")
    monkeypatch.setattr(files, "_HOST", files._host())
    gone = files.temporary_path(tmp_path / "model.glb")
    for path in (there, gone):
        path.with_name(path.name.replace(str(os.getpid()), str(2**22 + 1))).touch()
    remove_temporaries(tmp_path)
    assert len(names(tmp_path)) == 1 and "pid__1_" not in names(tmp_path)[0]


def test_files_have_the_mode_that_the_users_mask_gives(tmp_path, monkeypatch):
    """The mask is not changed even for a moment: other threads would create files that everyone may write to."""
    former = os.umask(0o027)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", None)
            write_text(tmp_path / "a.txt", "content")
    finally:
        os.umask(former)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def test_a_lock_on_a_run_removes_what_its_killed_owner_left(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    lock = files.temporary_path(tmp_path / ".lock", ".lock")
    lock.with_name(lock.name.replace(str(os.getpid()), str(2**22 + 1))).touch()
    (tmp_path / "checkpoints" / ".step-000004-abcd_123.safetensors").write_bytes(b"half of it")
    with owned(tmp_path):
        assert names(tmp_path) == [".lock"]


@pytest.fixture(params=["FIFO", "folder", "socket", "device"])
def irregular(request, tmp_path):
    """Something in place of a file that a reader must not wait for."""
    path = tmp_path / "not a file"
    if request.param == "FIFO":
        os.mkfifo(path)
    elif request.param == "folder":
        path.mkdir()
    elif request.param == "device":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    return path


def test_only_regular_files_are_read(irregular, tmp_path):
    with pytest.raises(files.NotRegular, match="not a regular file"):
        files.read_bytes(irregular)
    write_text(tmp_path / "a", "content")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert files.read_bytes(tmp_path / "link") == b"content"


@pytest.mark.parametrize("what", ["a folder in its place", "no folder for it"])
def test_a_file_that_cannot_be_written_is_named_itself(tmp_path, what):
    path = tmp_path / "target.json" if what == "a folder in its place" else tmp_path / "none/target.json"
    if what == "a folder in its place":
        path.mkdir()
    with pytest.raises(OSError) as error:
        write_json(path, {})
    assert files.describe(error.value).startswith(f"{path}: ") and names(tmp_path) == []
