"""Runs that optimise a mesh: from a file, a NeRF's run or another mesh's, with every part that a NeRF's run has."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from tiny_runs import OFF, TINY, changed, final_tensors

import nfsd3d
from nfsd3d.config.compose import compose
from nfsd3d.errors import InputError
from nfsd3d.export.formats.read_glb import read_glb
from nfsd3d.export.formats.table import write_mesh
from nfsd3d.generators.mesh.mesh import TexturedMesh
from nfsd3d.generators.mesh.surface import SurfaceMesh, Texture
from nfsd3d.runs import remains
from nfsd3d.runs.directory import check_unused
from nfsd3d.runs.field_stage import field_config, whole_run
from nfsd3d.runs.preflight import check
from nfsd3d.runs.resumable import can_be_resumed
from nfsd3d.runs.summary import read_summary
from nfsd3d.train import run
from nfsd3d.train.run import train_and_export

pytestmark = pytest.mark.usefixtures("tiny_prior")

MESH = {key: value for key, value in TINY.items() if not key.startswith("generator.")}
MESH |= {"generator.texture_size": 32, "generator.max_faces": 500, "generator.geometry_steps": 3}


@pytest.fixture(scope="module")
def cube(tmp_path_factory):
    """A textured cube with UVs of every side, as a GLB file; and what was written."""
    made = trimesh.creation.box((0.9, 0.8, 0.7))
    vertices, faces = np.array(made.vertices, np.float32), np.array(made.faces, np.int32)
    uv = np.tile(np.array([[0, 0], [1, 0], [0, 1]], np.float32) * 0.2, (12, 1))
    uv += np.repeat(np.stack(np.divmod(np.arange(12), 3), axis=1) * 0.25 + 0.01, 3, axis=0).astype(np.float32)
    image = np.random.default_rng(0).integers(60, 200, (16, 16, 3)).astype(np.uint8)
    texture = Texture(uv, faces.reshape(-1), np.arange(36, dtype=np.int32).reshape(12, 3), image)
    normals = vertices / np.linalg.norm(vertices, axis=1, keepdims=True)
    mesh = SurfaceMesh(vertices, faces, normals, np.full_like(vertices, 0.5), texture)
    path = tmp_path_factory.mktemp("cube") / "cube.glb"
    write_mesh(mesh, path, {}, compose("nfsd", ["prompt=x"]).export)
    return path, mesh


@pytest.fixture
def configure_mesh(tmp_path):
    """(changes by dotted key) -> a tiny configuration of a mesh, with its run in an empty folder."""

    def configured(experiment="nfsd", **changes):
        run_dir = changes.pop("run_dir", tmp_path / "mesh-run")
        run_dir.mkdir(exist_ok=True)
        sources = {name: changes.pop(name) for name in ("source_run", "source_mesh") if name in changes}
        overrides = [f"{name}={value}" for name, value in sources.items()]
        if "source_prompt" in changes:
            overrides.append(f"source_prompt={changes.pop('source_prompt')}")
        fixed = ["prompt=a red cube", "negative_prompt=dull", "machine=cpu", "backend=torch", "prior=shapes"]
        config = compose(experiment, [*fixed, "generator=mesh", *overrides])
        return changed(config, {**MESH, "run_dir": str(run_dir), **changes})

    return configured


def test_a_mesh_with_fixed_geometry_keeps_its_triangles_and_uvs_bit_for_bit(cube, configure_mesh, console):
    path, mesh = cube
    config = configure_mesh(source_mesh=path, **{"generator.geometry_steps": 0})
    run_dir = train_and_export(config, console=console)
    generator = nfsd3d.load_run(run_dir).generator
    surface = generator.surface()
    for given, kept in ((mesh.vertices, surface.vertices), (mesh.texture.uv, surface.texture.uv)):
        assert sorted(map(tuple, given.tolist())) == sorted(map(tuple, kept.tolist()))
    corners = mesh.vertices[mesh.faces], surface.vertices[surface.faces]
    np.testing.assert_array_equal(*corners)
    np.testing.assert_array_equal(mesh.texture.uv[mesh.texture.faces], surface.texture.uv[surface.texture.faces])
    assert surface.texture.image.shape == (32, 32, 3)  # its texels were larger than half a cell
    first, last = (generator.texture.numpy(), surface.texture.image / 255)
    assert np.abs(first - last).max() > 1 / 255  # that is what learned
    written = read_glb(run_dir / "mesh" / "model.glb")
    assert len(written.faces) == 12 and written.texture is not None
    names = {path.name for path in run_dir.iterdir()}
    assert {"turntable.mp4", "turntable.png", "report.html", "metrics.jsonl", "mesh", "previews"} <= names


def test_a_mesh_starts_as_the_surface_of_a_nerf_and_with_its_background(configure, configure_mesh, tmp_path, console):
    field = train_and_export(configure(**OFF, run_dir=tmp_path / "field"), console=console)
    config = configure_mesh(**OFF, source_run=field)
    check(config)
    run_dir = train_and_export(config, console=console)
    refined, source = nfsd3d.load_run(run_dir), nfsd3d.load_run(field)
    assert isinstance(refined.generator, TexturedMesh) and 50 < len(refined.generator.faces) <= 500
    field_views, mesh_views = source.views(4, 32), refined.views(4, 32)
    assert np.abs(field_views.astype(int) - mesh_views).mean() < 25
    assert np.abs(refined.extract().mesh.vertices).max() < 1
    shutil.rmtree(field)  # the run has kept what it started from
    longer = configure_mesh(**OFF, source_run=field, run_dir=run_dir, **{"train.steps": 8})
    assert nfsd3d.load_run(train_and_export(longer, resume=run_dir, console=console)).step == 8


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_a_run_that_was_interrupted_resumes_bit_for_bit(cube, configure_mesh, tmp_path, console, backend):
    settings = {**OFF, "source_mesh": cube[0], "backend.rasterizer": backend}
    whole = train_and_export(configure_mesh(**settings, run_dir=tmp_path / "whole"), console=console)
    parts = tmp_path / "parts"
    shutil.copytree(whole, parts)
    for file in (parts / "checkpoints").glob("step-00000[56]*"):
        file.unlink()
    train_and_export(configure_mesh(**settings, run_dir=parts), resume=parts, console=console)
    expected, given = final_tensors(whole), final_tensors(parts)
    assert expected.keys() == given.keys()
    assert [name for name in expected if not torch.equal(expected[name], given[name])] == []


def test_a_texture_that_shows_a_part_twice_learns_texel_by_texel(cube, configure_mesh, tmp_path, console):
    mirrored = replace(cube[1].texture, uv=cube[1].texture.uv[:3][np.arange(36) % 3])  # each triangle shows the same
    write_mesh(replace(cube[1], texture=mirrored), tmp_path / "same.glb", {}, compose("nfsd", ["prompt=x"]).export)
    with pytest.raises(InputError, match=r"generator\.color_cells=64: .*several places.*set generator\.color_cells=0"):
        train_and_export(configure_mesh(**OFF, source_mesh=tmp_path / "same.glb"), console=console)
    config = configure_mesh(**OFF, source_mesh=tmp_path / "same.glb", **{"generator.color_cells": 0})
    texels = train_and_export(config, console=console)
    assert nfsd3d.load_run(texels).step == 6
    with pytest.raises(InputError, match=r"generator\.color_cells=64: source_run=.*several places"):
        train_and_export(configure_mesh(**OFF, source_run=texels, run_dir=tmp_path / "again"), console=console)


def test_a_texture_of_large_texels_is_enlarged(cube, configure_mesh, tmp_path, console, capsys):
    small = replace(cube[1].texture, image=cube[1].texture.image[:4, :4].copy())
    write_mesh(replace(cube[1], texture=small), tmp_path / "small.glb", {}, compose("nfsd", ["prompt=x"]).export)
    run = nfsd3d.load_run(train_and_export(configure_mesh(**OFF, source_mesh=tmp_path / "small.glb"), console=console))
    assert run.generator.surface().texture.size == 32
    assert "its texture of 4^2 texels, which are larger than half a cell" in capsys.readouterr().err


def test_an_edit_starts_from_a_meshs_run(cube, configure_mesh, tmp_path, console):
    first = train_and_export(configure_mesh(**OFF, source_mesh=cube[0], run_dir=tmp_path / "first"), console=console)
    config = configure_mesh("dds", **OFF, source_run=first, source_prompt="a blue cube")
    check(config)
    run_dir = train_and_export(config, console=console)
    before, after = (nfsd3d.load_run(folder).views(4, 32).mean() for folder in (first, run_dir))
    assert after != before


def test_a_mesh_without_texture_gets_one_that_shows_its_colours(configure_mesh, tmp_path, console):
    made = trimesh.creation.icosphere(subdivisions=2, radius=0.6)
    made.visual.vertex_colors = np.where(made.vertices[:, [2]] > 0, [[220, 30, 30, 255]], [[30, 30, 220, 255]])
    made.export(tmp_path / "ball.ply")
    config = configure_mesh(**OFF, source_mesh=tmp_path / "ball.ply", **{"train.steps": 0 + 1})
    run = nfsd3d.load_run(train_and_export(config, console=console))
    view = run.views(1, 32)[0].astype(int)
    assert view[10, 16, 0] > view[10, 16, 2] + 60 and view[22, 16, 2] > view[22, 16, 0] + 60
    assert run.generator.texture.shape == (32, 32, 3)


def test_levels_of_detail_and_smaller_textures_are_exported(cube, configure_mesh, tmp_path, console):
    made = trimesh.creation.icosphere(subdivisions=3, radius=0.6)
    made.export(tmp_path / "ball.stl")
    config = configure_mesh(**OFF, source_mesh=tmp_path / "ball.stl", **{"train.steps": 1})
    run = nfsd3d.load_run(train_and_export(config, console=console))
    settings = replace(config.export, lods=[300], texture_size=16 * 4)
    extracted = run.extract(settings)
    assert len(extracted.mesh.faces) == 1280 and [len(mesh.faces) <= 300 for mesh in extracted.lods] == [True]
    assert "threshold" not in extracted.facts and extracted.facts["texture_size"] == 32
    assert run.extract(replace(settings, texture_size=0)).mesh.texture is None
    assert run.export(tmp_path / "again.obj").is_file() and len(run.mesh.faces) == 1280


def test_settings_that_do_not_fit_are_one_line(cube, configure_mesh, configure, tmp_path):
    cases = {
        "generator=mesh: needs a mesh to start from": {"refine": None},
        "z_variance=0.1: a mesh has one surface": {"source_mesh": cube[0], "train.regularizers.z_variance": 0.1},
        "normals=0.6: is more than the lit steps that train.shading.textureless=0.5 leaves": {
            "source_mesh": cube[0],
            "train.shading.normals": 0.6,
            "train.shading.lambertian": 0.5,
        },
        "normals=0.5: is the share of lit steps, of which there are none": {
            "source_mesh": cube[0],
            "train.shading.normals": 0.5,
        },
        "normal_map=true: generator=mesh has no finer surface": {"source_mesh": cube[0], "export.normal_map": True},
        "starts from one source": {"source_run": tmp_path, "source_mesh": cube[0]},
        "generator=mesh has exactly the rates geometry, texture, background": {
            "source_mesh": cube[0],
            "train.learning_rate": {"encoding": 0.1},
        },
    }
    for message, changes in cases.items():
        with pytest.raises(InputError, match=message) as error:
            configure_mesh(**changes)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"source_mesh=.*: is for generator=mesh"):
        configure(source_mesh=str(cube[0]))


def test_a_source_that_has_no_mesh_is_refused_before_anything_slow(configure_mesh, configure_2d, tmp_path, console):
    pictures = train_and_export(configure_2d(**{"export.report": False}), console=console)
    with pytest.raises(InputError, match=r"source_run=.*made pictures, which have no mesh"):
        check(configure_mesh(source_run=pictures))
    with pytest.raises(InputError, match=r"source_mesh=.*missing\.glb"):
        check(configure_mesh(source_mesh=tmp_path / "missing.glb"))


@pytest.fixture
def configure_refine(configure_mesh, tmp_path):
    """(changes by dotted key) -> a tiny configuration of a field and then its mesh."""
    field = tmp_path / "tiny_field.yaml"
    values = {key: value for key, value in TINY.items() if key not in ("generator.encoding", "train.steps")}
    encoding = {f"generator.encoding.{key}": value for key, value in TINY["generator.encoding"].items()}
    overrides = [f"{key}={str(value).lower()}" for key, value in {**values, **encoding}.items()]
    field.write_text("defaults: [nfsd]\n")

    def configured(**changes):
        refine = {"experiment": str(field), "field_steps": 4, "overrides": overrides}
        return configure_mesh("refine", **{"refine": refine, **OFF, **changes})

    return configured


def test_a_field_comes_first_then_the_mesh_in_one_run(configure_refine, tmp_path, console):
    config = configure_refine(**{"export.mesh": True, "export.report": True}, seed=3)
    run_dir = train_and_export(config, console=console)
    run, field = nfsd3d.load_run(run_dir), nfsd3d.load_run(run_dir / "field")
    assert (run.step, field.step) == (6, 4) and isinstance(run.generator, TexturedMesh)
    assert (field.config.prompt, field.config.negative_prompt, field.config.seed) == ("a red cube", "dull", 3)
    assert field.config.backend == run.config.backend and not (run_dir / "field" / "mesh").exists()
    assert run.summary["seconds"] > field.summary["seconds"] > 0
    assert run.summary["network_evaluations"] > field.summary["network_evaluations"] > 0
    assert (run_dir / "mesh" / "model.glb").is_file() and (run_dir / "report.html").is_file()
    printed = console.file.getvalue()
    assert "a field first" in printed and "then the mesh: 6 steps" in printed


@pytest.mark.parametrize("stopped", ["field", "mesh"])
def test_a_refined_run_resumes_where_it_was(configure_refine, tmp_path, console, stopped):
    whole = train_and_export(configure_refine(run_dir=tmp_path / "whole"), console=console)
    config, parts = configure_refine(run_dir=tmp_path / "parts"), tmp_path / "parts"

    class Stop(nfsd3d.Callback):
        def on_step(self, event):
            if event.step == (3 if stopped == "field" else 5) and (event.steps == (4 if stopped == "field" else 6)):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as error:
        train_and_export(config, console=console, callbacks=[Stop()])
    assert f"--resume {parts}" in str(error.value) and "field" not in str(error.value)
    summary = read_summary(parts)
    assert summary["status"] == "interrupted" and ("its field" in summary["reason"]) == (stopped == "field")
    again = nfsd3d.config.compose.load_run_config(parts)
    train_and_export(again, resume=parts, console=console)
    expected, given = final_tensors(whole), final_tensors(parts)
    assert [name for name in expected if not torch.equal(expected[name], given[name])] == []


def test_an_experiment_that_makes_no_field_is_refused(configure_refine, console):
    config = configure_refine(**{"refine.experiment": "nfsd_2d", "refine.overrides": []})
    with pytest.raises(InputError, match=r"refine\.experiment=nfsd_2d: makes no field"):
        train_and_export(config, console=console)


def test_the_field_has_settings_on_the_command_line():
    config = compose("refine", ["prompt=x", "refine.field_steps=4", 'refine.overrides=["train.batch_size=2"]'])
    field = field_config(config, Path("field"))
    assert (field.train.steps, field.train.batch_size, field.generator.radius) == (4, 2, config.generator.radius)
    assert compose("texture", ["prompt=x", "source_mesh=y"]).refine is None


def test_what_cannot_be_the_field_is_told_before_anything_is_made(configure_refine):
    with pytest.raises(InputError, match=r"refine\.experiment=nope: --config nope: no such file"):
        check(configure_refine(**{"refine.experiment": "nope"}))


class Killed(BaseException):
    """As SIGKILL: nothing cleans up."""


@pytest.mark.parametrize("moment", ["before the field's checkpoint", "between field and mesh"])
def test_a_refined_run_that_is_killed_at_an_awkward_moment_is_begun_again(
    configure_refine, tmp_path, console, monkeypatch, moment
):
    run_dir = tmp_path / "killed"
    config = configure_refine(run_dir=run_dir)
    calls, build = [], run.build_parts

    def killed(*arguments, **others):
        calls.append(1)
        if len(calls) == (1 if moment.startswith("before") else 2):
            raise Killed
        return build(*arguments, **others)

    monkeypatch.setattr(run, "build_parts", killed)
    with pytest.raises(Killed):
        train_and_export(config, console=console)
    if moment.startswith("before"):
        assert remains.found(run_dir) is not None and not can_be_resumed(run_dir)
        check_unused(run_dir)  # the same command starts it
    else:
        assert can_be_resumed(run_dir)
        train_and_export(nfsd3d.config.compose.load_run_config(run_dir), resume=run_dir, console=console)
        assert nfsd3d.load_run(run_dir).step == 6 and nfsd3d.load_run(run_dir / "field").step == 4


def test_only_a_refined_runs_field_is_a_part(configure_refine, tmp_path, console):
    outer = train_and_export(configure_refine(run_dir=tmp_path / "outer"), console=console)
    assert whole_run(outer / "field") == outer and whole_run(outer) == outer
    (tmp_path / "mine" / "field").mkdir(parents=True)
    (tmp_path / "mine" / "config.yaml").write_text("prompt: x\n")
    assert whole_run(tmp_path / "mine" / "field") == tmp_path / "mine" / "field"
