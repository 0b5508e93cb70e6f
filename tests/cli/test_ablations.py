"""The presets of ablations in configs/ablations: each is a sweep of valid jobs."""

import pytest

from nfsd3d.cli.main import main
from nfsd3d.config import hardware
from nfsd3d.config.experiments import choices_of

VALUES = {
    "guidance_scale": ("distill.guidance_scale", 7),
    "methods": ("distill", 7),
    "threshold": ("distill.threshold", 6),
    "timesteps": ("train.t_max", 4),
}


def test_every_preset_is_known_here():
    assert choices_of("ablations") == sorted(VALUES)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("generator", ["nerf", "latent"])
def test_a_preset_is_a_sweep_of_valid_jobs_over_its_setting(name, generator, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hardware, "_count_gpus", lambda: 0)
    given = ["prompt=a pink house,a red cube", f"generator={generator}", "machine=cpu", "dry_run=true"]
    assert main(["--config", f"ablations/{name}", "-m", *given]) == 0
    header, *jobs, last = capsys.readouterr().out.splitlines()
    key, count = VALUES[name]
    assert header.split()[:3] == ["job", key, "prompt"] and len({job.split()[1] for job in jobs}) == count
    assert last == f"# {2 * count} jobs on engine local; dry run: nothing was started"
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_replaces_the_values_of_a_preset(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = ["prompt=a pink house", "machine=cpu", "prior=shapes", "distill.threshold=0.15,0.25", "dry_run=true"]
    assert main(["--config", "ablations/threshold", "-m", *given]) == 0
    jobs = capsys.readouterr().out.splitlines()[1:-1]
    assert [job.split()[1] for job in jobs] == ["0.15", "0.25"]
