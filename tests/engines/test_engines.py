"""Sweeps on joblib, submitit, SLURM and Ray: what fails, is killed, interrupted, queued again and gone on with."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from nfsd3d.cli.main import run_command
from nfsd3d.jobs.controller import ENGINES, run
from nfsd3d.jobs.engines.base import EngineSettings
from nfsd3d.jobs.manifest import Manifest, new_manifest, read, write
from nfsd3d.jobs.state import states

pytestmark = [pytest.mark.engines, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

TINY = (
    *("--config", "nfsd_2d", "machine=cpu", "prior=shapes", "train.batch_size=1", "train.checkpoint_every=2"),
    *("export.turntable=false", "export.report=false", "train.tensorboard=false", "prompt=a red cube"),
)
LONG = ("train.steps=3000", "train.log_every=1", "train.checkpoint_every=500")
STEPS = 200
KILLED = (f"train.steps={STEPS}", "train.log_every=1", "train.checkpoint_every=10")
"""A run that lasts long enough to be killed in its first steps, on a fast machine too."""
ALONE = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
"""Runs a command within a network that has loopback alone."""
OTHERS = [name for name in ENGINES if name not in ("local", "submitit_slurm")]


@pytest.fixture(params=OTHERS)
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine whose package is installed."""
    _, package = ENGINES[request.param]
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    if request.param == "ray" and subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no network of its own can be made here")
    return request.param


def jobs_of(folder: Path, *arguments: tuple[str, ...]) -> Manifest:
    folder.mkdir()
    named = [(f"{number}-job", own, {"job": str(number)}) for number, own in enumerate(arguments)]
    manifest = new_manifest(folder, "sweep", TINY, ["job"], named)
    write(manifest)
    return read(folder)


@pytest.fixture
def controller():
    """A function that starts a process which runs the jobs; Ray's listens within a network of its own."""
    code = (
        "import json, sys; from pathlib import Path; from nfsd3d.jobs.controller import run\n"
        "from nfsd3d.jobs.engines.base import EngineSettings; from nfsd3d.jobs.manifest import read\n"
        "from nfsd3d.cli.main import run_command\n"
        "run(read(Path(sys.argv[1])), EngineSettings(**json.loads(sys.argv[2])), run_command)"
    )
    processes = []

    def start(manifest: Manifest, engine: str, within: tuple[str, ...] = (), **settings: object):
        values = json.dumps({"engine": engine, "threads": 1, **settings})
        command = [
            *(ALONE if engine == "ray" else []),
            *within,
            sys.executable,
            "-c",
            code,
            str(manifest.folder),
            values,
        ]
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        process.kill()
        process.communicate()


def statuses(manifest: Manifest) -> list[str]:
    return [state.status for _, state in states(manifest)]


def weights(manifest: Manifest, job: int, step: int) -> bytes:
    return (manifest.folder / f"{job}-job/checkpoints/step-{step:06d}.safetensors").read_bytes()


def attempt(manifest: Manifest, job: int = 0) -> dict[str, object]:
    return json.loads((manifest.folder / f"{job}-job" / "job.json").read_text())


def logged_steps(manifest: Manifest, job: int = 0) -> list[int]:
    path = manifest.folder / f"{job}-job" / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def exists(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    """The processes below one, whatever they are."""
    found, parents = [], [pid]
    while parents:
        parent = parents.pop()
        for path in Path(f"/proc/{parent}/task").glob("*/children"):
            parents += [int(child) for child in path.read_text().split()]
        found += [] if parent == pid else [parent]
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Manifest:
    """A set that the local engine has run: four jobs, of which one fails, and one to be killed on other engines."""
    wrong = ("train.steps=2", "train.batch_size=0")
    jobs = (("train.steps=3",), wrong, ("train.steps=3", "seed=1"), ("train.steps=2", "seed=2"), KILLED)
    manifest = jobs_of(tmp_path_factory.mktemp("local") / "set", *jobs)
    run(manifest, EngineSettings(threads=1), run_command)
    return manifest


@pytest.fixture
def started(tmp_path, engine, controller):
    """A function that has an engine run a job; returns when it trains."""

    def start(*arguments: str) -> tuple[Manifest, "subprocess.Popen[str]"]:
        manifest = jobs_of(tmp_path / "set", arguments)
        process = controller(manifest, engine)
        wait_for(lambda: len(logged_steps(manifest)) > 5)
        return manifest, process

    return start


def test_jobs_end_as_on_the_local_engine_and_one_that_fails_stops_no_other(tmp_path, engine, controller, undisturbed):
    manifest = jobs_of(tmp_path / "set", *[job.arguments for job in undisturbed.jobs[:4]])
    process = controller(manifest, engine, workers=2)
    _, printed = process.communicate(timeout=240)
    assert process.returncode == 0 and printed.count("done in") == 3, printed
    assert statuses(manifest) == ["done", "failed", "done", "done"]
    assert [state.attempt.engine for _, state in states(manifest)] == [engine] * 4
    for job, step in ((0, 3), (2, 3), (3, 2)):
        assert weights(manifest, job, step) == weights(undisturbed, job, step)


def test_the_job_of_a_killed_worker_is_done_once_from_its_checkpoint(started, undisturbed):
    manifest, process = started(*KILLED)
    os.kill(attempt(manifest)["pid"], signal.SIGKILL)
    _, printed = process.communicate(timeout=240)
    assert "started again" in printed
    assert statuses(manifest) == ["done"] and attempt(manifest)["attempt"] == 2
    assert logged_steps(manifest) == list(range(1, STEPS + 1))
    assert weights(manifest, 0, STEPS) == weights(undisturbed, 4, STEPS)


def test_workers_end_with_a_controller_that_is_killed_and_another_engine_ends_the_set(started):
    manifest, process = started("train.log_every=1", "train.steps=400", "train.checkpoint_every=100")
    below = descendants(process.pid)
    assert attempt(manifest)["pid"] in below
    process.kill()
    wait_for(lambda: not any(map(exists, below)))
    assert statuses(manifest) == ["interrupted"]
    run(manifest, EngineSettings(threads=1), run_command)
    assert statuses(manifest) == ["done"] and attempt(manifest)["attempt"] == 2


def test_a_signal_to_the_controller_ends_its_jobs_with_a_checkpoint_and_no_other_begins(tmp_path, engine, controller):
    manifest = jobs_of(tmp_path / "set", LONG, LONG)
    process = controller(manifest, engine)
    wait_for(lambda: len(logged_steps(manifest)) > 5)
    below = descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate(timeout=120)
    assert f"go on with: nfsd3d sweep resume {manifest.folder}" in printed
    assert statuses(manifest) == ["interrupted", "pending"]
    assert list((manifest.folder / "0-job" / "checkpoints").glob("step-*.json"))
    wait_for(lambda: not any(map(exists, below)))


@pytest.mark.parametrize("engine", ["submitit_local"], indirect=True)
def test_a_preempted_job_saves_and_submitit_starts_it_again(started, undisturbed):
    manifest, process = started(*KILLED)
    os.kill(attempt(manifest)["pid"], signal.SIGUSR2)
    _, printed = process.communicate(timeout=240)
    assert "started again" not in printed  # not by the controller
    assert statuses(manifest) == ["done"] and attempt(manifest)["attempt"] == 2
    assert weights(manifest, 0, STEPS) == weights(undisturbed, 4, STEPS)


@pytest.mark.parametrize("engine", ["ray"], indirect=True)
def test_jobs_of_a_ray_node_that_is_killed_are_done_once_on_another(tmp_path, engine, controller):
    manifest = jobs_of(tmp_path / "set", *[(*KILLED, f"seed={seed}") for seed in range(3)])
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="ray-", ignore_cleanup_errors=True) as folder:
        path = f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}"  # of the command ray
        nodes = ("env", path, str(Path(__file__).with_name("ray_nodes.sh")), folder)
        process = controller(manifest, engine, nodes, workers=3, address="127.0.0.1:6399")
        wait_for(lambda: len(logged_steps(manifest)) > 3)
        raylet = Path(f"/proc/{attempt(manifest)['pid']}/stat").read_text().rpartition(")")[2].split()[1]
        os.kill(int(raylet), signal.SIGKILL)
        _, printed = process.communicate(timeout=240)
    assert "NodeDiedError" in printed and printed.count("done in") == 3
    assert statuses(manifest) == ["done"] * 3 and attempt(manifest)["attempt"] == 2
    assert all(logged_steps(manifest, job) == list(range(1, STEPS + 1)) for job in range(3))


@pytest.fixture(scope="module", params=[1], ids=["one node"])
def slurm(request, tmp_path_factory):
    """A SLURM cluster of this machine, with so many nodes."""
    if find_spec("submitit") is None or shutil.which("slurmctld") is None or os.geteuid() != 0:
        pytest.skip("submitit, SLURM's daemons (tests/engines/slurm.sh install) and root are needed")
    folder = tmp_path_factory.mktemp("slurm")
    script = Path(__file__).with_name("slurm.sh")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        subprocess.run([script, "start", folder, str(request.param)], check=True, timeout=60)
        yield
        subprocess.run([script, "stop", folder], check=True, timeout=60)


def test_slurm_cancels_and_requeues_jobs_and_all_end_as_on_the_local_engine(tmp_path, slurm, controller, undisturbed):
    wrong, tiny = (undisturbed.jobs[number].arguments for number in (1, 2))
    manifest = jobs_of(tmp_path / "set", LONG, wrong, tiny, KILLED)
    process = controller(manifest, "submitit_slurm", workers=2)
    wait_for(lambda: len(logged_steps(manifest)) > 5)
    subprocess.run(["scancel", attempt(manifest)["id"]], check=True)
    wait_for(lambda: len(logged_steps(manifest, 3)) > 5)
    subprocess.run(["scancel", "--signal=USR2", attempt(manifest, 3)["id"]], check=True)
    _, printed = process.communicate(timeout=240)
    assert statuses(manifest) == ["interrupted", "failed", "done", "done"], printed
    assert "started again" not in printed and attempt(manifest)["attempt"] == 1  # as its user wanted
    assert attempt(manifest, 3)["attempt"] == 2
    assert weights(manifest, 2, 3) == weights(undisturbed, 2, 3)
    assert weights(manifest, 3, STEPS) == weights(undisturbed, 4, STEPS)


def test_a_killed_job_of_slurm_is_started_again_and_a_signal_to_the_controller_ends_it(tmp_path, slurm, controller):
    manifest = jobs_of(tmp_path / "set", LONG, LONG)
    process = controller(manifest, "submitit_slurm")
    wait_for(lambda: len(logged_steps(manifest)) > 5)
    subprocess.run(["scancel", "--state=PENDING", attempt(manifest)["id"].partition("_")[0]], check=True)
    os.kill(attempt(manifest)["pid"], signal.SIGKILL)
    wait_for(lambda: attempt(manifest)["attempt"] == 2 and statuses(manifest)[0] == "running")
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate(timeout=120)
    assert "0-job: its process ended without a result" in printed and "go on with: nfsd3d sweep resume" in printed
    assert statuses(manifest) == ["interrupted", "pending"]
    wait_for(lambda: subprocess.run(["squeue", "--noheader"], capture_output=True, check=True).stdout == b"")


def test_a_job_of_slurm_at_its_time_limit_without_requeues_left_is_interrupted(tmp_path, slurm, controller):
    manifest = jobs_of(tmp_path / "set", (*LONG, "train.steps=30000"))
    process = controller(manifest, "submitit_slurm", timeout_min=2, signal_delay_s=50, max_requeues=0)
    _, printed = process.communicate(timeout=240)
    ((_, state),) = states(manifest)
    assert (state.status, state.attempt.attempt) == ("interrupted", 1) and "SIGUSR2" in state.reason
    assert "0-job: interrupted" in printed and "started again" not in printed


def test_a_preempted_job_of_slurm_with_two_gpus_ends_its_processes_and_is_requeued(tmp_path, slurm, controller):
    two = ("train.batch_size=2", *KILLED)
    manifest, undisturbed = jobs_of(tmp_path / "set", two), jobs_of(tmp_path / "undisturbed", two)
    process = controller(manifest, "submitit_slurm", gpus=2, threads=2)
    wait_for(lambda: len(logged_steps(manifest)) > 5)
    subprocess.run(["scancel", "--signal=USR2", attempt(manifest)["id"]], check=True)
    _, printed = process.communicate(timeout=240)
    assert statuses(manifest) == ["done"] and attempt(manifest)["attempt"] == 2, printed
    assert logged_steps(manifest) == list(range(1, STEPS + 1))
    process = controller(undisturbed, "submitit_slurm", gpus=2, threads=2)
    process.communicate(timeout=240)
    assert weights(manifest, 0, STEPS) == weights(undisturbed, 0, STEPS)


def test_what_slurm_does_not_take_is_told_on_one_line(tmp_path, slurm, controller):
    manifest = jobs_of(tmp_path / "set", LONG)
    process = controller(manifest, "submitit_slurm", partition="nowhere")
    _, printed = process.communicate(timeout=60)
    assert "InputError: engine submitit_slurm: SLURM takes no job: " in printed and "nowhere" in printed
    assert statuses(manifest) == ["pending"]


@pytest.mark.parametrize("slurm", [2], indirect=True, ids=["two nodes"])
def test_jobs_of_several_arrays_are_done_once_though_a_node_is_drained_and_one_fails(tmp_path, slurm, controller):
    seeds = [f"seed={seed}" for seed in range(5)]  # an array may have four jobs
    manifest = jobs_of(
        tmp_path / "set", *[(*KILLED, seed) for seed in seeds[:2]], *[("train.steps=2", s) for s in seeds[2:]]
    )
    process = controller(manifest, "submitit_slurm", workers=2)
    wait_for(lambda: len(logged_steps(manifest, 0)) > 3 and len(logged_steps(manifest, 1)) > 3)
    nodes = dict(line.split() for line in squeue("%i %N").splitlines() if line.split()[1:])
    failing, drained = (nodes[str(attempt(manifest, job)["id"])] for job in (0, 1))
    change_node(failing, "down")
    change_node(drained, "drain")
    wait_for(lambda: statuses(manifest)[1] == "done")
    change_node(failing, "resume", check=False)  # its daemon may have brought it back already
    _, printed = process.communicate(timeout=300)
    assert statuses(manifest) == ["done"] * 5, printed
    assert [attempt(manifest, job)["attempt"] for job in range(5)] == [2, 1, 1, 1, 1]
    assert logged_steps(manifest, 0) == list(range(1, STEPS + 1))
    arrays = {str(attempt(manifest, job)["id"]).partition("_")[0] for job in range(5)}
    assert len(arrays) == 2
    states_of_nodes = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--format=%N %T"], capture_output=True, text=True
    )
    assert f"{drained} drained" in states_of_nodes.stdout


def squeue(form: str) -> str:
    return subprocess.run(
        ["squeue", "--noheader", "--array", f"--format={form}"], capture_output=True, text=True
    ).stdout


def change_node(name: str, state: str, check: bool = True) -> None:
    subprocess.run(["scontrol", "update", f"nodename={name}", f"state={state}", "reason=test"], check=check)
