"""The Python interface and the commands on a run, with a small model in the layout of Stable Diffusion."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import trimesh
from tiny_models import build_model

import nfsd3d
from nfsd3d.cli.main import main
from nfsd3d.config import hardware
from nfsd3d.errors import InputError
from nfsd3d.export import extract
from nfsd3d.export.texture import unwrap
from nfsd3d.generators.nerf.nerf import NeRF

TINY = {
    "prompts.views": "coarse",  # the tiny model reads few tokens
    "generator.encoding.levels": 2,
    "generator.encoding.log2_entries": 8,
    "generator.encoding.base_resolution": 4,
    "generator.hidden_width": 8,
    "generator.occupancy_resolution": 8,
    "generator.samples_per_ray": 24,
    "train.steps": 4,
    "train.batch_size": 2,
    "train.resolution": 16,
    "train.learning_rate": {"encoding": 1e-3, "network": 1e-3, "background": 1e-3},
    "train.preview_size": 16,
    "train.checkpoint_every": 2,
    "train.tensorboard": False,
    "export.resolution": 32,
    "export.texture_size": 64,
    "export.turntable_frames": 8,
    "export.turntable_size": 16,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model folder."""
    return build_model(tmp_path_factory.mktemp("model"), "tiny", "epsilon")


@pytest.fixture(scope="module")
def run(model, tmp_path_factory) -> nfsd3d.Run:
    """A finished run; do not change it."""
    directory = tmp_path_factory.mktemp("runs") / "a red cube"
    overrides = {"machine": "cpu", "backend": "torch", "prior": "shapes", "prior.model": model, "run_dir": directory}
    return nfsd3d.generate("a red cube", negative_prompt="dull", **overrides, **TINY)


def test_importing_the_package_is_cheap():
    check = "import sys, nfsd3d; print(nfsd3d.__version__, 'torch' in sys.modules, 'hydra' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    assert output.split() == [nfsd3d.__version__, "False", "False"]
    assert not hasattr(nfsd3d, "generates")


def test_generate_makes_a_whole_run(run, model):
    files = {path.relative_to(run.directory).as_posix() for path in run.directory.rglob("*") if path.is_file()}
    assert files >= {"config.yaml", "summary.json", "metrics.jsonl", "turntable.mp4", "mesh/model.glb", "report.html"}
    assert run.summary["status"] == "done" and run.summary["prior"] == str(model)
    assert run.step == 4 and run.config.prompt == "a red cube"
    assert [line["step"] for line in run.metrics] == [4]
    assert "a red cube" in repr(run)


def test_views_are_images_all_around_the_object(run):
    views = run.views(n=3, size=20)
    assert views.shape == (3, 20, 20, 3) and views.dtype == np.uint8
    np.testing.assert_array_equal(views, run.views(n=3, size=20))
    assert (views[0] != views[1]).any()
    with pytest.raises(InputError, match="n=0"):
        run.views(n=0)


def test_the_mesh_is_z_up_and_the_file_y_up(run, tmp_path):
    assert isinstance(run.mesh, trimesh.Trimesh) and run.mesh.is_watertight and run.mesh.volume > 0
    assert run.mesh.visual.kind == "vertex"
    path = run.export(tmp_path / "new folder" / "cube.glb")
    loaded = trimesh.load_scene(path).to_geometry()
    np.testing.assert_allclose(loaded.extents, run.mesh.extents[[1, 2, 0]], atol=1e-5)
    with pytest.raises(InputError, match="fbx"):
        run.export(tmp_path / "cube.fbx")


def test_a_run_is_loaded_at_any_of_its_checkpoints(run):
    assert nfsd3d.load_run(run.directory).step == 4
    early = nfsd3d.load_run(str(run.directory), step=2)
    assert early.step == 2
    before, after = early.generator.state_dict(), run.generator.state_dict()
    assert any(not before[name].equal(after[name]) for name in after)
    with pytest.raises(InputError, match="2, 4"):
        nfsd3d.load_run(run.directory, step=3)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"train.stepz": 3}, "train.steps"),
        ({"train.steps": "many"}, "whole number"),
        ({"dry_run": True}, "dry_run"),
        ({"prior.model": "/no/such/folder"}, "/no/such/folder"),
    ],
)
def test_wrong_settings_are_errors(overrides, words):
    with pytest.raises(InputError, match=words):
        nfsd3d.generate("a red cube", prior="shapes", machine="cpu", **overrides)


@pytest.fixture(scope="module")
def flat(model, tmp_path_factory) -> nfsd3d.Run:
    """A finished run of latents; do not change it."""
    directory = tmp_path_factory.mktemp("runs") / "pictures"
    overrides = {"machine": "cpu", "prior": "shapes", "prior.model": model, "run_dir": directory}
    sizes = {"train.steps": 2, "train.batch_size": 2, "train.checkpoint_every": 1, "train.tensorboard": False}
    return nfsd3d.generate("a red cube", config="nfsd_2d", negative_prompt="dull", **overrides, **sizes)


def test_a_run_in_2d_has_images(flat, run):
    assert flat.images.dtype == np.uint8 and flat.images.shape[0] == 2 and flat.images.shape[3] == 3
    np.testing.assert_array_equal(flat.images[1], imageio.imread(flat.directory / "images" / "001.png"))
    assert (nfsd3d.load_run(flat.directory, step=1).images != flat.images).any()
    for attribute in (lambda: flat.mesh, flat.views, lambda: flat.export("x.glb"), lambda: flat.turntable("x")):
        with pytest.raises(InputError, match=r"generator=latent.*image\.png"):
            attribute()
    with pytest.raises(InputError, match=r"a scene.*views"):
        _ = run.images


# Commands


@pytest.mark.parametrize("command", ["export", "render"])
def test_images_have_neither_mesh_nor_views(flat, tmp_path, capsys, command):
    assert main([command, str(flat.directory), "--output", str(tmp_path / "new")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and "image.png" in captured.err
    assert not (tmp_path / "new").exists()


def test_export_writes_the_formats_and_numbers_asked_for(run, tmp_path, capsys):
    arguments = ["--formats", "obj, STL", "--resolution", "24", "--max-faces", "300", "--threshold", "2"]
    output = ["--output", str(tmp_path / "meshes"), "--json", str(tmp_path / "numbers.json")]
    assert main(["export", str(run.directory), *arguments, *output]) == 0
    files = [str(tmp_path / "meshes" / f"model.{name}") for name in ("obj", "png", "mtl", "stl")]
    printed = capsys.readouterr().out.split("\n")
    assert "a texture of 64^2" in printed[0] and printed[1:5] == files
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["files"] == files and numbers["step"] == 4 and numbers["threshold"] == 2
    assert 0 < numbers["faces"] <= 300
    assert numbers["texture_size"] == 64
    assert len(trimesh.load_mesh(files[3]).faces) == numbers["faces"]


def test_export_without_a_texture_says_so(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(extract, "unwrap", lambda *_: pytest.fail("nothing to unwrap"))
    arguments = [str(run.directory), "--resolution", "24", "--output", str(tmp_path)]
    assert main(["export", *arguments, "--texture-size", "0"]) == 0
    assert "vertex colours" in capsys.readouterr().out
    assert main(["export", *arguments, "--formats", "ply"]) == 0  # holds no texture


def test_export_gives_the_reason_for_a_missing_texture(run, tmp_path, capsys, monkeypatch):
    def fail(surface, size, timeout, on_wait):
        raise unwrap.UnwrapFailed(f"unwrapping was not done after {timeout:g} s")

    monkeypatch.setattr(extract, "unwrap", fail)
    arguments = ["--resolution", "24", "--unwrap-timeout", "3", "--output", str(tmp_path)]
    assert main(["export", str(run.directory), *arguments, "--json", str(tmp_path / "numbers.json")]) == 0
    assert "no texture: unwrapping was not done after 3 s" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["texture_size"] is None and "after 3 s" in numbers["untextured"]
    assert trimesh.load_scene(tmp_path / "model.glb").to_geometry().is_watertight  # no seams


def test_unwritable_outputs_are_errors_before_the_work_starts(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(extract, "sample_density", lambda *_: pytest.fail("the work has begun"))
    before = {path: path.stat().st_mtime_ns for path in run.directory.rglob("*")}
    assert main(["export", str(run.directory), "--output", "/proc/no"]) == 2
    assert "error: --output /proc/no: cannot be written" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in run.directory.rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/no/such/run"], "no such run directory"),
        (["{empty}"], "not a run directory"),
        (["{run}", "--formats", "glb,fbx"], "fbx"),
        (["{run}", "--formats", ""], "glb"),
        (["{run}", "--threshold", "1e9"], "1e+09"),
        (["{run}", "--step", "3"], "2, 4"),
        (["{run}", "--output", "/proc/no"], "--output"),
        (["{run}", "--output", "{empty}/mesh", "--json", "/proc/no"], "--json /proc/no: cannot be written"),
    ],
)
def test_bad_input_to_export_is_one_line_and_exit_code_2(run, tmp_path, capsys, arguments, words):
    filled = [text.format(run=run.directory, empty=tmp_path) for text in arguments]
    assert main(["export", *filled]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and words in captured.err


def copied(run, folder, *, checkpoints=True) -> Path:
    """A copy of the run without its results."""
    folder.mkdir()
    shutil.copy(run.directory / "config.yaml", folder)
    if checkpoints:
        shutil.copytree(run.directory / "checkpoints", folder / "checkpoints")
    return folder


def test_a_run_without_a_checkpoint_cannot_be_exported(run, tmp_path, capsys):
    unfinished = copied(run, tmp_path / "unfinished", checkpoints=False)
    assert main(["export", str(unfinished)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and "checkpoint" in captured.err and captured.err.count("\n") == 1
    assert sorted(path.name for path in unfinished.iterdir()) == ["config.yaml"]


def test_a_loaded_run_outlives_its_checkpoint(run, tmp_path):
    live = copied(run, tmp_path / "live")
    loaded = nfsd3d.load_run(live)
    shutil.rmtree(live / "checkpoints")  # a run that trains on removes old checkpoints
    assert loaded.step == 4
    assert (loaded.views(n=1, size=20) == run.views(n=1, size=20)).all()


def test_a_loaded_run_is_found_from_another_working_directory(run, tmp_path, monkeypatch):
    monkeypatch.chdir(run.directory.parent)
    loaded = nfsd3d.load_run(run.directory.name)
    monkeypatch.chdir(tmp_path)
    assert loaded.summary == run.summary and loaded.metrics == run.metrics


def test_a_damaged_checkpoint_is_named_on_one_line_without_advice_to_delete_it(run, tmp_path, capsys):
    damaged = copied(run, tmp_path / "damaged")
    weights = damaged / "checkpoints" / "step-000004.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert nfsd3d.load_run(damaged).step == 2
    assert "step 2 is used instead" in capsys.readouterr().err
    assert main(["export", str(damaged), "--step", "4"]) == 2
    error = capsys.readouterr().err
    assert "step-000004.safetensors is damaged" in error and "there are: 2" in error
    assert error.count("\n") == 1 and "delete" not in error


def test_a_field_that_is_not_finite_cannot_be_exported_and_the_run_stays_as_it_is(run, tmp_path, capsys, monkeypatch):
    broken = copied(run, tmp_path / "broken")
    monkeypatch.setattr(NeRF, "density", lambda self, positions: positions[:, 0] * float("nan"))
    assert main(["export", str(broken)]) == 2
    captured = capsys.readouterr()
    assert "not finite" in captured.err and "earlier checkpoint" in captured.err and captured.err.count("\n") == 1
    assert sorted(entry.name for entry in broken.iterdir()) == ["checkpoints", "config.yaml"]


def trained_elsewhere(run, directory, field, sampler):
    """A copy of ``run`` whose configuration says that it was trained on a GPU."""
    copied(run, directory)
    config = (directory / "config.yaml").read_text()
    changes = {"name: cpu": "name: cuda", "device: cpu": "device: cuda:1"}
    changes |= {"field: torch": f"field: {field}", "sampler: torch": f"sampler: {sampler}"}
    if field == "triton":
        changes["    precision: float32"] = "    precision: float16"  # of the encoding's tables
    for before, after in changes.items():
        assert config.count(before) == 1
        config = config.replace(before, after)
    (directory / "config.yaml").write_text(config)
    return directory


@pytest.mark.parametrize("sampler", ["triton", "nerfacc"])
def test_runs_of_a_machine_with_a_gpu_are_opened_without_one(run, tmp_path, monkeypatch, capsys, sampler):
    monkeypatch.setattr(hardware, "_count_gpus", lambda: 0)
    there = trained_elsewhere(run, tmp_path / "there", "triton", sampler)
    assert main(["export", str(there)]) == 0
    assert f"{there}: opened with machine=cpu and backend=" in capsys.readouterr().err
    assert (there / "mesh" / "model.glb").exists()
    loaded = nfsd3d.load_run(there)
    assert loaded.config.machine.device == "cpu" and loaded.config.generator == run.config.generator
    np.testing.assert_allclose(loaded.views(n=1, size=20), run.views(n=1, size=20), atol=2)


def test_runs_of_tiny_cuda_nn_need_it(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hardware, "_count_gpus", lambda: 0)
    there = trained_elsewhere(run, tmp_path / "there", "tcnn", "nerfacc")
    assert main(["export", str(there)]) == 2
    error = capsys.readouterr().err
    assert str(there) in error and "backend.field=tcnn" in error and "no NVIDIA GPU is visible" in error


def test_runs_that_are_older_than_a_setting_can_be_exported(run, tmp_path):
    old = copied(run, tmp_path / "old")
    config = (old / "config.yaml").read_text().splitlines()
    newer = ("texture_size:", "unwrap_timeout:")
    kept = [line for line in config if not line.strip().startswith(newer)]
    assert len(kept) == len(config) - 2
    (old / "config.yaml").write_text("\n".join(kept) + "\n")
    assert nfsd3d.load_run(old).config.export.texture_size == 1024
    assert main(["export", str(old), "--texture-size", "0"]) == 0
    assert (old / "mesh" / "model.glb").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--threshold", "-1"],
        ["--threshold", "thick"],
        ["--resolution", "2"],
        ["--resolution", "1025"],
        ["--max-faces", "1.5"],
        ["--texture-size", "5000"],
        ["--texture-size", "100.5"],
        ["--unwrap-timeout", "0"],
        [],
    ],
)
def test_wrong_numbers_are_refused_by_the_parser(run, capsys, arguments):
    assert main(["export", *([str(run.directory), *arguments] if arguments else [])]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "nfsd3d export --help" in error


def test_render_writes_views_and_turntables(run, tmp_path):
    assert main(["render", str(run.directory), "--views", "2", "--size", "17", "--output", str(tmp_path)]) == 0
    assert sorted(path.name for path in (tmp_path / "views").iterdir()) == ["000.png", "001.png"]
    assert imageio.imread(tmp_path / "views" / "000.png").shape == (17, 17, 3)
    assert not (tmp_path / "turntable.mp4").exists()

    arguments = ["--frames", "9", "--size", "17", "--elevation", "60", "--output", str(tmp_path)]
    assert main(["render", str(run.directory), *arguments]) == 0
    assert imageio.imread(tmp_path / "turntable.mp4", plugin="pyav").shape == (9, 18, 54, 3)
    assert imageio.imread(tmp_path / "turntable.png").shape == (36, 8 * 18, 3)


@pytest.mark.parametrize("arguments", [["/no/such/run"], ["{run}", "--step", "3"], ["{run}", "--output", "/proc/no"]])
def test_render_opens_and_writes_as_export_does(run, capsys, arguments):
    assert main(["render", *[text.format(run=run.directory) for text in arguments], "--views", "1"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1


@pytest.mark.parametrize("script", ["export_mesh.py", "render.py"])
def test_the_scripts_are_the_commands(script, tmp_path):
    command = [sys.executable, str(Path(__file__).parent.parent / "scripts" / script)]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    assert "RUN_DIR" in shown
    wrong = subprocess.run([*command, str(tmp_path / "none")], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: ") and wrong.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nfsd3d.generate("a red cube", run_dir=b"run"), "run_dir=b'run': a bytes is no value"),
        (lambda: nfsd3d.generate("a red cube", run_dir=object()), "run_dir=<object object at"),
        (lambda: nfsd3d.generate("a red cube", train={"steps": {1}}), "train.steps={1}: a set is no value"),
        (lambda: nfsd3d.generate("a red cube", config=3), "config=3: not a path"),
        (lambda: nfsd3d.load_run(None), "directory=None: not a path; give text or a pathlib.Path"),
        (lambda: nfsd3d.load_run(3), "directory=3: not a path"),
        (lambda: nfsd3d.load_run(b""), "directory=b'': not a path"),
        (lambda: nfsd3d.load_run(".", step="3"), "step='3': not a number of steps"),
    ],
)
def test_an_argument_of_a_wrong_type_is_an_error_on_one_line(call, message):
    with pytest.raises(InputError) as error:
        call()
    assert message in str(error.value) and "\n" not in str(error.value)
