"""Sweeps for other machines do not depend on the GPUs of the machine that begins them."""

import pytest

from nfsd3d.cli.main import main
from nfsd3d.config import hardware

SWEEP = ["-m", "seed=0,1", "dry_run=true", "prompt=a red cube", "prior=shapes"]
SLURM, RAY = "hydra/launcher=submitit_slurm", "hydra/launcher=ray"


@pytest.fixture(params=[0, 2], ids=["no GPU here", "two GPUs here"])
def gpus_here(request, monkeypatch):
    monkeypatch.setattr(hardware, "visible_gpus", lambda: request.param)
    monkeypatch.setattr(hardware, "cuda_obstacle", lambda: None if request.param else "no NVIDIA GPU is visible")
    return request.param


@pytest.mark.parametrize(
    ("engine", "machine"),
    [
        ([SLURM], "machine=cuda (auto: submitit_slurm with gpus=1)"),
        ([SLURM, "hydra.launcher.gpus=0"], "machine=cpu (auto: submitit_slurm with gpus=0)"),
        ([RAY, "hydra.launcher.address=auto"], "machine=cpu (auto: ray with gpus=0)"),
        ([RAY, "hydra.launcher.gpus=0.5", "hydra.launcher.address=auto"], "machine=cuda (auto: ray with gpus=0.5)"),
        (["hydra/launcher=submitit_local"], "machine=cpu (auto: submitit_local with gpus=0)"),
    ],
)
def test_auto_follows_the_gpus_that_an_engine_gives(gpus_here, capsys, engine, machine):
    assert main([*SWEEP, *engine]) == 0
    assert machine in capsys.readouterr().err


def test_local_jobs_follow_this_machine(gpus_here, capsys):
    assert main(SWEEP) == 0
    assert f"machine={'cuda' if gpus_here else 'cpu'} (auto: " in capsys.readouterr().err


def test_a_gpu_of_another_machine_need_not_be_here(gpus_here, capsys):
    assert main([*SWEEP, SLURM, "machine=cuda"]) == 0
    assert "2 jobs" in capsys.readouterr().out


@pytest.mark.parametrize("engine", [[SLURM, "hydra.launcher.gpus=0"], [RAY], ["hydra/launcher=submitit_local"]])
@pytest.mark.parametrize("machine", [["machine=cuda"], ["machine=cpu,cuda"], ["machine=cuda", "machine.device=cuda:1"]])
def test_jobs_on_gpus_that_get_none_are_refused(gpus_here, capsys, engine, machine):
    del gpus_here
    assert main([*SWEEP, *engine, *machine]) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "gpus=0: " in line and "(hydra.launcher.gpus=1, or --gpus 1), or set machine=cpu" in line
