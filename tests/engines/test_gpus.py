"""Jobs of this machine get GPUs of their own, out of those of their controller, and the threads they ask for."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from job_commands import record_gpus, record_threads

from nfsd3d.errors import InputError
from nfsd3d.jobs import cores
from nfsd3d.jobs.controller import ENGINES, check_engine, run
from nfsd3d.jobs.engines.base import EngineSettings
from nfsd3d.jobs.manifest import new_manifest, read, write

HERE = [
    "local",
    pytest.param("joblib", marks=pytest.mark.engines),
    pytest.param("submitit_local", marks=pytest.mark.engines),
]


@pytest.fixture
def gpus(monkeypatch):
    """A function that pretends that this process may use the GPUs of these names."""

    def pretend(*names: str) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(names))
        monkeypatch.setattr(cores, "visible_gpus", lambda: len(names))

    return pretend


@pytest.fixture
def seen(tmp_path, monkeypatch):
    """A function that runs four jobs on an engine, and returns what each saw."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=":")

    def run_on(engine: str, **settings: float | None) -> list[str]:
        if (package := ENGINES[engine][1]) is not None and find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
        manifest = new_manifest(tmp_path, "sweep", [], ["job"], [(f"{n}", [], {"job": f"{n}"}) for n in range(4)])
        write(manifest)
        counts = run(read(tmp_path), EngineSettings(engine=engine, threads=1, **settings), record_gpus)
        assert counts == {"done": 4}
        return [(tmp_path / f"{number}" / "gpus.txt").read_text() for number in range(4)]

    return run_on


@pytest.mark.parametrize("engine", HERE)
def test_each_worker_has_a_gpu_of_its_own_that_its_controller_may_use(gpus, seen, engine):
    gpus("3", "5")
    assert set(seen(engine, workers=2, gpus=1)) == {"3", "5"}


@pytest.mark.parametrize("engine", HERE)
@pytest.mark.parametrize("threads", [1, 2])
def test_torch_and_numba_have_the_threads_of_the_job(tmp_path, monkeypatch, engine, threads):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=":")
    if (package := ENGINES[engine][1]) is not None and find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    write(new_manifest(tmp_path, "sweep", [], ["job"], [(f"{n}", [], {"job": f"{n}"}) for n in range(2)]))
    assert run(read(tmp_path), EngineSettings(engine=engine, threads=threads), record_threads) == {"done": 2}
    for number in range(2):  # the second one may find torch imported
        found = json.loads((tmp_path / f"{number}" / "threads.json").read_text())
        assert found[:2] == [threads, threads] and found[3] == [2.0 * index for index in range(8)]
        assert found[2] in ("omp", "workqueue")  # see tests/generators/nerf/test_launch_numba.py


@pytest.mark.parametrize("engine", HERE[:2])
def test_a_worker_alone_may_have_all_of_them(gpus, seen, engine):
    gpus("GPU-a", "GPU-b")
    assert set(seen(engine)) == {"GPU-a,GPU-b"}


@pytest.mark.parametrize("engine", HERE)
def test_jobs_without_gpus_see_none(gpus, seen, engine):
    gpus("0", "1")
    assert set(seen(engine, gpus=0)) == {""}


def test_without_a_number_gpus_are_shared_equally_and_in_turn_where_they_are_too_few(gpus):
    gpus("4", "5", "6", "7")
    assert cores.gpu_shares(2, None) == [["4", "5"], ["6", "7"]]
    gpus("4", "5")
    assert cores.gpu_shares(3, None) == [["4"], ["5"], ["4"]]
    gpus()
    assert cores.gpu_shares(2, None) == [None, None]


@pytest.mark.parametrize(
    ("engine", "workers", "number", "words"),
    [
        ("local", 2, 1, "gpus=1: 2 workers need 2 GPUs and 1 are visible; lower workers or gpus"),
        ("submitit_local", 1, 4, "gpus=4: 1 workers need 4 GPUs"),
        ("local", 1, 0.5, "gpus=0.5: only Ray divides a GPU among jobs; give a whole number"),
        ("submitit_slurm", 8, 1.5, "gpus=1.5: only Ray divides a GPU among jobs"),
    ],
)
def test_gpus_that_cannot_be_given_are_refused(gpus, monkeypatch, engine, workers, number, words):
    gpus("0")
    monkeypatch.setattr(cores, "usable_cores", lambda: [0, 1])
    monkeypatch.setattr("nfsd3d.jobs.controller.find_spec", lambda package: package)
    with pytest.raises(InputError, match=f"^{words}"):
        check_engine(EngineSettings(engine=engine, workers=workers, gpus=number))
