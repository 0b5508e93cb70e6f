"""Several processes that share a run compute what one computes, and end together."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from second_rank import digest
from tiny_runs import OFF, TinyPrior, final_tensors

from nfsd3d.cli.main import main
from nfsd3d.config.compose import compose
from nfsd3d.errors import InputError, RunFailed
from nfsd3d.jobs.cores import threads
from nfsd3d.runs import checkpoints
from nfsd3d.runs.metrics import read_metrics
from nfsd3d.runs.summary import read_summary
from nfsd3d.train import run
from nfsd3d.train.interrupts import Interrupted
from nfsd3d.train.ranks import Ranks
from nfsd3d.train.run import train_and_export
from nfsd3d.train.torchrun import ALONE, PRECEDENCE, Worker

ROOT = Path(__file__).parents[2]
LOGGED = {"train.log_every": 1, "train.preview_every": 6, **OFF}
EVERYTHING = {
    "train.batch_size": 4,
    "train.regularizers.orient": 0.1,
    "train.regularizers.z_variance": 0.1,
    "train.shading.lambertian": 0.5,
    "train.random_background": 0.5,
    "generator.max_samples": 3000,
    "generator.background": "learned",
    "generator.normals": "finite_difference",
}
VSD = {"distill.method": "vsd", "distill.lora_learning_rate": 1e-3, "train.steps": 3}


class Second:
    """The second process of the runs of this one; started once."""

    def __init__(self):
        self.start()

    def stop(self):
        self.process.kill()
        self.process.communicate()

    def start(self):
        environment = {**os.environ, **threads(1), "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "second_rank.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def follow(self, config, tiny, fault):
        """Begins a run there; returns the port of the store that this process must host."""
        if self.process.poll() is not None:  # the fault of an earlier run has ended it
            self.stop()
            self.start()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        asked = {"config": config.to_dict(), "port": port, "tiny": tiny, "fault": fault}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return port

    def answer(self):
        return json.loads(self.process.stdout.readline() or "{}")


@pytest.fixture(scope="module")
def second():
    other = Second()
    yield other
    other.stop()


@pytest.fixture
def shared(second, console, monkeypatch):
    """(configuration, ...) -> run directory, error, tensors' digest here and answer of a run in two processes."""

    def train(config, *, resume=None, tiny=True, fault=None):
        port = second.follow(config, tiny, fault)
        seen, error, original = [], None, run.train
        with monkeypatch.context() as patch:
            patch.setenv("MASTER_ADDR", "127.0.0.1")
            patch.setenv("MASTER_PORT", str(port))
            patch.setattr(run, "train", lambda *a: seen.append(a[2]) or original(*a))
            if tiny:
                patch.setattr("nfsd3d.train.build.build_prior", lambda config: TinyPrior())
            try:
                train_and_export(config, resume=resume, console=console, worker=Worker(0, 2, 0, 2))
            except (RunFailed, Interrupted) as caught:
                error = caught
                if torch.distributed.is_initialized():
                    torch.distributed.destroy_process_group()
        return Path(config.run_dir), error, digest(seen[0]), second.answer()

    return train


def assert_close(run_dir, expected_dir, tolerance):
    found, expected = final_tensors(run_dir), final_tensors(expected_dir)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value.is_floating_point():
            # A norm: Adam divides a small gradient by its own size, which magnifies the rounding of single numbers.
            assert float((found[name] - value).norm()) <= tolerance * float(value.norm()), name
        else:
            assert torch.equal(found[name], value), name
    lines = zip(read_metrics(run_dir / "metrics.jsonl"), read_metrics(expected_dir / "metrics.jsonl"), strict=True)
    for line, other in lines:
        assert line.keys() == other.keys()
        for name in line.keys() - {"seconds", "steps_per_second"}:
            assert line[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name
    keys = ("status", "steps", "network_evaluations")
    assert [read_summary(run_dir)[key] for key in keys] == [read_summary(expected_dir)[key] for key in keys]


@pytest.mark.parametrize(
    ("settings", "tiny"),
    [
        pytest.param(EVERYTHING, True, id="nfsd"),
        pytest.param({"distill.method": "sdi"}, True, id="sdi"),
        pytest.param(VSD, False, id="vsd"),
    ],
)
def test_two_processes_compute_what_one_computes(configure, shared, tmp_path, console, monkeypatch, settings, tiny):
    config = configure(**LOGGED, **settings, run_dir=tmp_path / "two")
    run_dir, error, here, there = shared(config, tiny=tiny)
    assert error is None and there == {"error": "", "digest": here}
    if tiny:
        monkeypatch.setattr("nfsd3d.train.build.build_prior", lambda config: TinyPrior())
    one = train_and_export(configure(**LOGGED, **settings, run_dir=tmp_path / "one"), console=console)
    assert_close(run_dir, one, 1e-5)


def test_images_are_divided_and_a_run_is_resumed_by_one_process(configure_2d, shared, tmp_path, console, monkeypatch):
    """The second half is computed by one process, from the checkpoint of two."""
    monkeypatch.setattr("nfsd3d.train.build.build_prior", lambda config: TinyPrior())
    settings = {"train.batch_size": 4, **LOGGED}
    config = configure_2d(**settings, run_dir=tmp_path / "two")
    run_dir, error, here, there = shared(config)
    assert error is None and there == {"error": "", "digest": here}
    checkpoints.remove_later(run_dir / "checkpoints", 4)
    train_and_export(config, resume=run_dir, console=console)
    assert_close(run_dir, train_and_export(configure_2d(**settings, run_dir=tmp_path / "one"), console=console), 1e-5)


def test_a_process_without_memory_makes_all_of_them_retry_with_smaller_chunks(configure, shared, tmp_path, console):
    run_dir, error, here, there = shared(configure(**LOGGED, run_dir=tmp_path / "short"), fault=("memory", 3))
    assert error is None and there == {"error": "", "digest": here}
    assert read_summary(run_dir)["smaller_chunks"]["from_step"] == 3
    full, *_ = shared(configure(**LOGGED, run_dir=tmp_path / "full"))
    assert_close(run_dir, full, 1e-5)


@pytest.mark.parametrize("kind", ["SIGTERM", "SIGKILL"])
def test_what_ends_one_process_ends_all_after_a_checkpoint(configure, shared, tmp_path, console, kind):
    """The run is resumed, to the result of one that was not interrupted."""
    config = configure(**LOGGED, **{"train.checkpoint_every": 6}, run_dir=tmp_path / "ended")
    run_dir, error, *_ = shared(config, fault=(kind, 4))
    steps = 4 if kind == "SIGTERM" else 3
    assert checkpoints.newest(run_dir).steps == steps
    if kind == "SIGTERM":
        assert isinstance(error, Interrupted) and error.exit_code == 128 + signal.SIGTERM
    else:
        assert re.search(r"another process of the run has ended.* after step 3; go on with: .*--resume", str(error))
    summary = read_summary(run_dir)
    assert summary["status"] == "interrupted" and summary.get("signal") == ("SIGTERM" if kind == "SIGTERM" else None)
    shared(config, resume=run_dir)
    straight, *_ = shared(configure(**LOGGED, run_dir=tmp_path / "straight"))
    found, expected = final_tensors(run_dir), final_tensors(straight)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_diverged_run_goes_back_in_all_processes(configure_2d, shared, tmp_path, kind):
    diverging = {f"train.learning_rate.{kind}": 1e6, "train.diverged.retries": 1, "train.batch_size": 4}
    config = configure_2d(**LOGGED, **diverging, run_dir=tmp_path / "run")
    run_dir, error, here, there = shared(config)
    assert "after 1 of 1 retries" in str(error) and there["error"].startswith("RunFailed") and there["digest"] == here
    assert read_summary(run_dir)["status"] == "diverged"


@pytest.mark.parametrize(
    ("device", "views", "visible", "words"),
    [
        ("cpu", 3, 0, r"train.batch_size=3: 2 processes, .* set train.batch_size=4"),
        ("cpu", 1, 0, r"train.batch_size=1: 2 processes, .* set train.batch_size=2"),
        ("cuda:1", 2, 2, r"machine.device=cuda:1: .* set it to cuda"),
        ("cuda", 2, 1, r"2 processes on a machine with 1 visible GPU\(s\); start torchrun with --nproc_per_node=1"),
    ],
)
def test_what_cannot_be_divided_is_an_error_that_says_what_to_set(
    configure, monkeypatch, device, views, visible, words
):
    monkeypatch.setattr("nfsd3d.train.torchrun.visible_gpus", lambda: visible)
    config = configure(**{"machine.device": device, "train.batch_size": views})
    with pytest.raises(InputError, match=words):
        Worker(0, 2, 0, 2).check(config)
    ALONE.check(config)


@pytest.mark.parametrize("arguments", [["-m", "seed=0,1", "prompt=a red cube"], ["compare", "--tier", "2d"]])
def test_only_a_run_is_shared(arguments, monkeypatch, capsys):
    as_one_of_two(monkeypatch, 0)
    assert main(arguments) == 2
    assert f"error: {arguments[0]}: only one run is shared" in capsys.readouterr().err


def as_one_of_two(monkeypatch, index):
    """Sets the variables by which torchrun tells this process that it is one of two."""
    for name, value in {"RANK": index, "WORLD_SIZE": 2, "LOCAL_RANK": index, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_compute_what_one_computes(tmp_path, console):
    settings = ["generator=latent", "prior=shapes", "machine.precision=float32", "train.batch_size=2", "train.steps=6"]
    settings += ["train.log_every=1", "export.report=false"]
    process = torchrun(tmp_path, "machine=cuda", *settings, f"run_dir={tmp_path / 'two'}")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    (tmp_path / "one").mkdir()
    alone = compose("nfsd", ["prompt=a red cube", "machine=cuda", *settings, f"run_dir={tmp_path / 'one'}"])
    assert_close(tmp_path / "two", train_and_export(alone, console=console), 1e-3)


def test_each_process_takes_the_gpu_of_its_number(monkeypatch):
    taken, groups = [], []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **options: groups.append(backend))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    worker = Worker(5, 8, local_index=1, local_count=4)
    worker.__dict__["store"] = torch.distributed.HashStore()
    with Ranks(worker).joined("cuda"):
        assert taken == [1] and groups == ["cpu:gloo,cuda:nccl"]  # flags on the CPU, gradients on the GPUs


def test_without_torchrun_there_is_one_process_and_no_group(configure, tiny_prior, console):
    assert Worker.of_environment({}) == Worker.of_environment({"RANK": "1", "WORLD_SIZE": "2"}) == ALONE
    train_and_export(configure(**OFF, **{"train.steps": 1}), console=console)
    assert not torch.distributed.is_initialized()


def torchrun(folder, *arguments, options=(), program=ROOT / "launch.py"):
    """The process of a torchrun command line with two workers, in ``folder``."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *options]
    return subprocess.Popen(
        [*command, str(program), "prompt=a red cube", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **threads(1), "PYTHONPATH": str(ROOT)},
    )


def worker(parent, rank):
    """The process number of a worker of torchrun."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            child = path.read_text().rpartition(")")[2].split()[1] == str(parent)
            if child and f"\0RANK={rank}\0" in (path.parent / "environ").read_text():
                return int(path.parent.name)
    raise AssertionError(f"torchrun has no worker {rank}")


@pytest.mark.engines
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc")
def test_torchrun_restarts_a_run_that_lost_a_process_and_it_resumes(tmp_path):
    """In the directory that the first process had chosen; it alone prints."""
    settings = ("generator=latent", "train.batch_size=2", "train.steps=60", "train.log_every=1", "export.report=false")
    process = torchrun(tmp_path, "machine=cpu", *settings, options=["--max-restarts=1"])
    while not (begun := [path for path in tmp_path.rglob("metrics.jsonl") if path.read_bytes().count(b"\n") > 5]):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    os.kill(worker(process.pid, 1), signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    for line in ("another process of the run has ended", "prior=shapes (auto", "resumed after step"):
        assert output.count(line) == 1, output
    (metrics,) = tmp_path.rglob("metrics.jsonl")
    assert [metrics] == begun and [line["step"] for line in read_metrics(metrics)] == list(range(1, 61))
    assert read_summary(metrics.parent)["status"] == "done"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds threads in /proc")
def test_the_communications_threads_end_with_the_run(tmp_path):
    """One that lives on may want Python's lock while the process ends, and abort it."""
    program = tmp_path / "threads.py"
    program.write_text(
        "import os\nfrom pathlib import Path\nfrom nfsd3d.__main__ import main\ncode = main()\n"
        "names = [path.read_text() for path in Path('/proc/self/task').glob('*/comm')]\n"
        f"Path({str(tmp_path)!r}, os.environ['RANK']).write_text(str(sum('gloo' in name for name in names)))\n"
        "raise SystemExit(code)\n"
    )
    settings = ("generator=latent", "train.batch_size=2", "train.steps=2", "export.report=false")
    process = torchrun(tmp_path, "machine=cpu", *settings, f"run_dir={tmp_path / 'run'}", program=program)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["0", "0"]


def test_torchrun_prints_an_error_once_however_late_the_first_process_finds_it(tmp_path):
    program = tmp_path / "late.py"
    program.write_text(
        "import os, time\ntime.sleep(5 * (os.environ['RANK'] == '0'))\n"
        "from nfsd3d.__main__ import main\nraise SystemExit(main())\n"
    )
    process = torchrun(tmp_path, "machine=cpu", "train.batch_size=3", f"run_dir={tmp_path / 'run'}", program=program)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1  # torchrun's own
    assert output.count("train.batch_size=3") == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_whose_error_is_its_own_prints_it_too(index, monkeypatch, capsys):
    waited = []
    monkeypatch.setattr("nfsd3d.train.torchrun.time.sleep", waited.append)
    as_one_of_two(monkeypatch, index)
    assert main(["prompt=a red cube", "machine=cpu", "train.batch_size=3"]) == 2
    assert capsys.readouterr().err.count("error: train.batch_size=3") == 1
    assert waited == [PRECEDENCE] * index
