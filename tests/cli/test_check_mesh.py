"""``nfsd3d check-mesh`` on a small run."""

import json
from pathlib import Path

import imageio.v3 as imageio
import pytest
import trimesh
from tiny_runs import TINY

import nfsd3d
from nfsd3d.cli.check_mesh import main


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A run of six steps with a mesh in four formats; do not change it."""
    directory = tmp_path_factory.mktemp("runs") / "snowman"
    settings = {
        **TINY,
        "export.turntable": False,
        "export.report": False,
        "export.formats": ["glb", "obj", "ply", "stl"],
    }
    nfsd3d.generate("a purple snowman", machine="cpu", prior="shapes", run_dir=directory, **settings)
    return directory


def test_other_programs_are_a_table_pictures_and_numbers(run_dir, tmp_path, capsys):
    code = main([str(run_dir), "--assimp", "no-such-assimp", "--output", str(tmp_path), "--json", str(tmp_path / "j")])
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert code == 1 and not found["ok"]  # assimp opens nothing
    rows = {(row["file"], row["program"].split()[0]): row for row in found["programs"]}
    files = [f"model.{suffix}" for suffix in ("glb", "obj", "ply", "stl")]
    assert set(rows) == {(file, name) for file in files for name in ("assimp", "trimesh")}
    assert "is it installed" in rows["model.glb", "assimp"]["failure"]
    assert rows["model.obj", "trimesh"]["color_error"] < 3
    assert f"model.stl, trimesh {trimesh.__version__}: opens" in printed.err
    assert imageio.imread(tmp_path / "snowman-programs.png").shape[1] > 512
    assert "| model.glb | trimesh" in (tmp_path / "snowman-programs.md").read_text()


def test_without_other_programs_there_is_no_table(run_dir, tmp_path, capsys):
    main([str(run_dir), "--output", str(tmp_path)])
    assert "programs" not in json.loads(capsys.readouterr().out)
    assert [path.name for path in tmp_path.iterdir()] == ["snowman-views.png"]
