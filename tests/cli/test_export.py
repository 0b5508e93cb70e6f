"""``nfsd3d export``: options beside the settings of the run."""

import json
from pathlib import Path

import pytest
import trimesh
from tiny_runs import OFF, TINY

import nfsd3d
from nfsd3d.cli.export import main
from nfsd3d.errors import InputError


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A run whose meshes are 60 mm long and have a normal map; do not change it."""
    directory = tmp_path_factory.mktemp("runs") / "snowman"
    settings = {**TINY, **OFF, "export.size_mm": 60, "export.normal_map": True}
    nfsd3d.generate("a purple snowman", machine="cpu", prior="shapes", run_dir=directory, **settings)
    return directory


def exported(run_dir: Path, folder: Path, *options: str) -> tuple[float, bool]:
    """The longest side of the GLB, and whether it has a normal map."""
    assert main([str(run_dir), "--output", str(folder), "--max-faces", "500", *options]) == 0
    (mesh,) = trimesh.load_scene(folder / "model.glb").geometry.values()
    return float(mesh.extents.max()), getattr(mesh.visual.material, "normalTexture", None) is not None


def test_what_a_run_says_of_its_meshes_is_undone_by_options(run_dir, tmp_path):
    side, relief = exported(run_dir, tmp_path / "as it is")
    assert side == pytest.approx(0.06, rel=1e-3) and relief
    side, relief = exported(run_dir, tmp_path / "undone", "--size-mm", "0", "--no-normal-map")
    assert side > 0.2 and not relief


def test_a_format_without_texture_needs_no_normal_map(run_dir, tmp_path):
    assert main([str(run_dir), "--formats", "stl", "--output", str(tmp_path), "--json", str(tmp_path / "j")]) == 0
    assert json.loads((tmp_path / "j").read_text())["texture_size"] is None


def test_the_normal_map_is_told(run_dir, tmp_path, capsys):
    exported(run_dir, tmp_path)
    assert "with a normal map" in capsys.readouterr().out


def test_a_normal_map_without_a_texture_is_refused(run_dir, tmp_path):
    with pytest.raises(InputError, match=r"--normal-map: stl, ply has none; add glb, obj or usdz to --formats"):
        main([str(run_dir), "--normal-map", "--formats", "stl,ply", "--output", str(tmp_path)])
    with pytest.raises(InputError, match=r"export\.normal_map=true: needs a texture"):
        main([str(run_dir), "--texture-size", "0", "--output", str(tmp_path)])
