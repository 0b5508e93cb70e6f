"""``scripts/true_solids.py``: gray meshes of the true objects."""

import importlib.util
from pathlib import Path

import pytest

from nfsd3d.errors import InputError
from nfsd3d.evaluate.geometry.voxels import mesh_solid, overlap, solid_of
from nfsd3d.export.formats.source.mesh import read_mesh

SCRIPT = Path(__file__).parents[2] / "scripts" / "true_solids.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("true_solids", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_meshes_are_the_objects_without_their_colours(script, tmp_path, capsys):
    suite = tmp_path / "suite.yaml"
    suite.write_text("prompts: [a white mug, a red and blue striped cone]\n")
    assert script.main([str(tmp_path / "meshes"), "--suite", str(suite)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1] for line in lines] == ["a white mug", "a red and blue striped cone"]
    for line, name in zip(lines, ("mug", "cone"), strict=True):
        mesh = read_mesh(Path(line.split("  ")[0]), 1.0).mesh
        assert overlap(mesh_solid(mesh.to_trimesh(), 1.0), solid_of(name, 1.0)) > 0.95
        assert len(mesh.faces) <= script.TRIANGLES and mesh.colors == pytest.approx(0.5, abs=0.01)


def test_what_is_no_suite_is_one_line(script, tmp_path):
    (tmp_path / "empty.yaml").write_text("rows: {}\n")
    for name in ("missing.yaml", "empty.yaml"):
        with pytest.raises(InputError, match=r"--suite .*: is no suite with prompts"):
            script.main([str(tmp_path), "--suite", str(tmp_path / name)])
