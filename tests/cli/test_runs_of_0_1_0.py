"""Runs that version 0.1.0 finished (commit 62fe448) load, resume, render and export."""

import json
import shutil
from pathlib import Path

import pytest
import trimesh

import nfsd3d
from nfsd3d.cli.main import main
from nfsd3d.config import renamed

RUNS = Path(__file__).parents[1] / "data" / "runs-0.1.0"
SCENES = ["scene", "vsd"]


@pytest.fixture
def run_dir(request, tmp_path, monkeypatch) -> Path:
    """A copy of the run that the test names, in a process that has printed no notice yet."""
    renamed.print_once.cache_clear()
    return shutil.copytree(RUNS / request.param, tmp_path / request.param)


def test_the_runs_use_old_names():
    config = (RUNS / "scene" / "config.yaml").read_text()
    assert "pixels_at_once: 256" in config and "rows_at_once: null" in config and "viewer: false" in config


@pytest.mark.parametrize("run_dir", ["scene", "latent", "vsd"], indirect=True)
def test_an_old_run_loads_with_one_notice_for_each_old_name(run_dir, capsys):
    run = nfsd3d.load_run(run_dir)
    assert run.step == 4 and run.summary["status"] == "done" and len(run.metrics) == 4
    assert run.config.machine.rays_per_chunk == (256 if run_dir.name == "scene" else None)
    notices = capsys.readouterr().err.splitlines()
    assert sorted(line.split()[1] for line in notices) == ["machine.pixels_at_once", "machine.rows_at_once"]


@pytest.mark.parametrize("run_dir", ["scene", "latent", "vsd"], indirect=True)
def test_an_old_run_resumes(run_dir):
    overrides = ["train.steps=6", "export.turntable=false", "export.mesh=false"]
    changed = ["machine.rays_per_chunk=512"] if run_dir.name == "scene" else []
    assert main(["--resume", str(run_dir), *overrides, *changed]) == 0
    run = nfsd3d.load_run(run_dir)
    assert run.step == 6 and [line["step"] for line in run.metrics] == [1, 2, 3, 4, 5, 6]
    assert json.loads((run_dir / "summary.json").read_text())["versions"]["nfsd3d"] == nfsd3d.__version__
    config = (run_dir / "config.yaml").read_text()
    assert "at_once" not in config and "viewer" not in config
    assert run.config.machine.rays_per_chunk == (512 if changed else None)


@pytest.mark.parametrize("run_dir", SCENES, indirect=True)
def test_an_old_scene_renders_and_exports(run_dir, tmp_path):
    assert main(["render", str(run_dir), "--views", "1", "--size", "16", "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "views" / "000.png").exists()
    assert main(["export", str(run_dir), "--formats", "ply", "--output", str(tmp_path / "out")]) == 0
    assert len(trimesh.load_mesh(tmp_path / "out" / "model.ply").faces) > 0


@pytest.mark.parametrize("run_dir", ["latent"], indirect=True)
def test_an_old_run_of_latents_has_images(run_dir):
    assert nfsd3d.load_run(run_dir).images.shape == (1, 64, 64, 3)
