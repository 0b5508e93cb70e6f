"""A run directory belongs to one process at a time."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from nfsd3d.errors import InputError, RunFailed
from nfsd3d.runs import lock
from nfsd3d.runs.lock import Owner, check_owned, owned
from nfsd3d.runs.process import start_time

HOLDER = """
import os, sys, time
from pathlib import Path
from nfsd3d.runs.lock import owned
with owned(Path(sys.argv[1])):
    if "fork" in sys.argv and os.fork() == 0:
        time.sleep(60)
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold(tmp_path):
    """Starts a process that holds the lock of ``tmp_path`` until it is killed."""
    processes = []

    def start(*options):
        command = [sys.executable, "-c", HOLDER, str(tmp_path), *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in processes:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def brief(monkeypatch):
    """Heartbeats and their limits, 100 times shorter."""
    for name in ("HEARTBEAT", "STALE", "PAUSE"):
        monkeypatch.setattr(lock, name, getattr(lock, name) / 100)


def forbidden(*arguments, **options):
    raise PermissionError(1, "Operation not permitted")


def in_another_thread(folder):
    """Another thread tries to own ``folder``, and is refused."""

    def attempt():
        with pytest.raises(InputError, match="in use") as refused, owned(folder):
            pass
        errors.append(refused)

    errors = []
    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    assert errors


def written(folder, *, age=0.0, **changes):
    """A lock as an owner on another machine writes it, ``age`` seconds ago."""
    owner = replace(Owner.this_process(), host="elsewhere", machine="another boot", **changes)
    path = folder / lock.NAME
    path.write_text(json.dumps(asdict(owner)))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_the_lock_is_gone_after_the_block(tmp_path):
    with owned(tmp_path), owned(tmp_path):  # nested: the inner one changes nothing
        assert (tmp_path / lock.NAME).exists()
        check_owned(tmp_path)
    assert list(tmp_path.iterdir()) == []
    check_owned(tmp_path)  # says nothing about a directory that nobody has claimed


def test_a_second_process_is_refused_in_one_line_that_names_the_first(tmp_path, hold):
    process = hold()
    with pytest.raises(InputError) as refused, owned(tmp_path):
        pytest.fail("two owners")
    message = str(refused.value)
    assert f"in use by process {process.pid} on {socket.gethostname()} since" in message and "\n" not in message


def test_another_thread_is_refused(tmp_path):
    with owned(tmp_path):
        in_another_thread(tmp_path)


def test_no_thread_takes_a_lock_that_is_being_released(tmp_path, monkeypatch):
    original = lock._read

    def read(path):
        owner = original(path)
        if threading.current_thread() is threading.main_thread():
            in_another_thread(tmp_path)
        return owner

    with owned(tmp_path):
        monkeypatch.setattr(lock, "_read", read)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [(), ("fork",)])
def test_a_killed_process_holds_nothing_although_its_child_lives(tmp_path, hold, options):
    process = hold(*options)
    process.kill()  # not waited for: even as a zombie it counts as dead
    while start_time(process.pid):
        time.sleep(0.01)
    started = time.monotonic()
    with owned(tmp_path):
        check_owned(tmp_path)
    assert time.monotonic() - started < 5


def test_a_later_process_with_the_same_number_is_another_one(tmp_path):
    path = tmp_path / lock.NAME
    path.write_text(json.dumps(asdict(replace(Owner.this_process(), started="0"))))
    with owned(tmp_path):
        assert json.loads(path.read_text())["started"] != "0"


def test_of_processes_that_find_a_dead_owner_one_wins(tmp_path):
    """Twelve threads at once, eight times."""
    for _ in range(8):
        (tmp_path / lock.NAME).write_text(json.dumps(asdict(replace(Owner.this_process(), started="0"))))
        outcomes, together, decided = [], threading.Barrier(12), threading.Barrier(12)

        def attempt(outcomes=outcomes, together=together, decided=decided):
            together.wait()
            try:
                with owned(tmp_path):
                    outcomes.append("owned")
                    decided.wait()
            except InputError:
                outcomes.append("refused")
                decided.wait()

        threads = [threading.Thread(target=attempt) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["owned", *["refused"] * 11]


def test_another_machines_owner_is_refused_when_its_heart_beats(tmp_path, brief, capsys):
    path = written(tmp_path)
    stop = threading.Event()

    def beat():
        while not stop.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(InputError, match=r"in use by process .* on elsewhere"), owned(tmp_path):
            pytest.fail("two owners")
    finally:
        stop.set()
        thread.join()
    assert "locked by process" in capsys.readouterr().err


def test_another_machines_owner_without_heartbeat_is_replaced(tmp_path, brief):
    written(tmp_path)
    started = time.monotonic()
    with owned(tmp_path):
        assert time.monotonic() - started >= lock.STALE  # not before
    written(tmp_path, age=2 * lock.STALE)
    started = time.monotonic()
    with owned(tmp_path):
        assert time.monotonic() - started < lock.STALE


def test_a_heartbeat_in_the_future_is_not_waited_for_until_then(tmp_path, brief):
    written(tmp_path, age=-3600)  # the server's clock was set back
    with owned(tmp_path):
        check_owned(tmp_path)


def test_the_owners_heart_beats(tmp_path, brief):
    with owned(tmp_path):
        before = (tmp_path / lock.NAME).stat().st_mtime_ns
        time.sleep(5 * lock.HEARTBEAT)
        assert (tmp_path / lock.NAME).stat().st_mtime_ns > before


@pytest.mark.parametrize("content", [b"\x00" * 40, b"[" * 100_000, b"[]", b"{}"])
def test_a_damaged_lock_counts_by_its_age(tmp_path, brief, content):
    (tmp_path / lock.NAME).write_bytes(content)
    with owned(tmp_path):
        check_owned(tmp_path)


@pytest.mark.parametrize("kind", ["dangling link", "folder", "FIFO"])
def test_what_is_no_lock_is_named_and_stays(tmp_path, kind):
    path = tmp_path / lock.NAME
    if kind == "FIFO":
        os.mkfifo(path)
    else:
        path.mkdir() if kind == "folder" else path.symlink_to("nowhere")
    with pytest.raises(InputError, match=r"\.lock: not a regular file, and so no lock of a run"), owned(tmp_path):
        pass
    assert lock.live_owner(tmp_path) is None and os.path.lexists(path)


@pytest.mark.parametrize("what", ["taken over", "file .lock is gone", "file .lock is damaged", "directory is gone"])
def test_an_owner_that_has_lost_its_directory_stops_writing(tmp_path, brief, what):
    folder = tmp_path / "run"
    folder.mkdir()
    with owned(folder):
        check_owned(folder)
        if what == "taken over":
            written(folder)
        elif what == "file .lock is damaged":
            os.truncate(folder / lock.NAME, 20)
        else:
            (folder / lock.NAME).unlink()
        if what == "directory is gone":
            folder.rmdir()
        with pytest.raises(RunFailed, match=what):
            check_owned(folder)
    if what == "taken over":
        assert (folder / lock.NAME).exists()  # it is the other's


def test_a_directory_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_create", forbidden)
    with pytest.raises(InputError, match=r"cannot be written \(Operation not permitted\)"), owned(tmp_path):
        pass


def test_without_hard_links_there_is_one_owner(tmp_path, monkeypatch):
    monkeypatch.setattr(lock.os, "link", forbidden)
    with owned(tmp_path):
        check_owned(tmp_path)
        in_another_thread(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_hard_links_a_lock_that_was_moved_aside_by_mistake_is_put_back(tmp_path, monkeypatch):
    path = written(tmp_path)
    content = path.read_text()
    monkeypatch.setattr(lock.os, "link", forbidden)
    lock._remove_stale(path, Owner.this_process())
    assert path.read_text() == content and list(tmp_path.iterdir()) == [path]


def test_a_hard_link_whose_answer_was_lost_is_a_lock(tmp_path, monkeypatch):
    original = os.link

    def answer_is_lost(*arguments):  # an NFS client repeats the request, which the server refuses
        original(*arguments)
        raise FileExistsError(17, "File exists")

    monkeypatch.setattr(lock.os, "link", answer_is_lost)
    with owned(tmp_path):
        check_owned(tmp_path)


def test_an_owner_without_a_heartbeat_releases_its_lock(tmp_path, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError), owned(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []
    with owned(tmp_path):
        check_owned(tmp_path)


def test_another_users_process_that_the_system_hides_may_be_alive(monkeypatch):
    monkeypatch.setattr(lock.Path, "read_text", forbidden)
    assert start_time(2**22 + 1) == ""  # no such process
    monkeypatch.setattr(os, "kill", forbidden)
    assert start_time(1) is None
