"""Size, unit, axes and origin of exported files, 3MF, USDZ and compression, read by other programs."""

import json
import locale
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import trimesh
from pxr import Usd, UsdGeom, UsdShade

from nfsd3d.errors import InputError
from nfsd3d.export.formats.glb import glb_bytes
from nfsd3d.export.formats.placement import METRES, place, y_up
from nfsd3d.export.formats.read_glb import read_glb, world_glb
from nfsd3d.export.formats.table import FORMATS, write_mesh, write_meshes
from nfsd3d.generators.mesh.surface import SurfaceMesh, Texture, srgb_to_linear
from nfsd3d.settings.export import Placement, check_packages

EXTRAS = {"prompt": "a <red> & white cone", "seed": 3}


@pytest.fixture
def mesh() -> SurfaceMesh:
    """A cone of radius .5 (x, y) and height 1.6, its tip up, off the origin."""
    cone = trimesh.creation.cone(radius=0.5, height=1.6, sections=48)
    vertices = (cone.vertices + np.array([0.2, -0.1, 0.15])).astype(np.float32)
    colors = np.linspace(0.1, 0.9, len(vertices) * 3).reshape(-1, 3).astype(np.float32)
    normals = np.array(cone.vertex_normals, np.float32)
    return SurfaceMesh(vertices, cone.faces.astype(np.int32), normals, colors)


@pytest.fixture
def textured(mesh) -> SurfaceMesh:
    """Each triangle with a square of the texture for itself."""
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    corners = mesh.faces.reshape(-1)
    uv = np.random.default_rng(1).random((len(corners), 2)).astype(np.float32)
    faces = np.arange(len(corners), dtype=np.int32).reshape(-1, 3)
    return replace(mesh, texture=Texture(uv, corners.astype(np.int32), faces, image))


def written(mesh, name, folder, **placement) -> Path:
    (path, *_) = write_mesh(mesh, folder / f"model.{name}", EXTRAS, Placement(**placement))
    return path


def threemf(path):
    """Unit, vertices, and the colour of each vertex, of a 3MF, as its specification says."""
    with zipfile.ZipFile(path) as archive:
        root = ElementTree.fromstring(archive.read("3D/3dmodel.model"))
    core = "{http://schemas.microsoft.com/3dmanufacturing/core/2015/02}"
    extension = "{http://schemas.microsoft.com/3dmanufacturing/material/2015/02}"
    vertices = np.array([[float(v.get(axis)) for axis in "xyz"] for v in root.iter(f"{core}vertex")])
    group = [c.get("color") for c in root.iter(f"{extension}color")]
    colors = {}
    for triangle in root.iter(f"{core}triangle"):
        for corner in "123":
            colors[int(triangle.get(f"v{corner}"))] = group[int(triangle.get(f"p{corner}", triangle.get("p1")))]
    facts = {m.get("name"): m.text for m in root.iter(f"{core}metadata")}
    return root.get("unit"), vertices, colors, facts


def size_and_top(path):
    """Extents in the file's numbers and the axis of the cone's tip, which is far from the middle of the vertices."""
    if path.suffix == ".3mf":
        _, vertices, *_ = threemf(path)
    elif path.suffix == ".usdz":
        stage = Usd.Stage.Open(str(path))
        vertices = np.array(UsdGeom.Mesh(stage.GetPrimAtPath("/model/mesh")).GetPointsAttr().Get())
    else:
        vertices = np.asarray(trimesh.load_scene(path).to_geometry().vertices)
    extents, middle = np.ptp(vertices, axis=0), (vertices.min(0) + vertices.max(0)) / 2
    return extents, int((middle - vertices.mean(0)).argmax()), vertices


UP = {"glb": 1, "obj": 1, "usdz": 1, "ply": 2, "stl": 2, "3mf": 2}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size_mm", [None, 60.0])
def test_a_mesh_has_its_size_and_stands_upright(mesh, tmp_path, name, size_mm):
    path = written(mesh, name, tmp_path, size_mm=size_mm)
    extents, top, _ = size_and_top(path)
    longest = 1.6 if size_mm is None else 0.06 if name == "glb" else 60
    assert extents[top] == pytest.approx(longest, rel=1e-4) and top == UP[name]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("units", METRES)
@pytest.mark.parametrize("up", ["y", "z"])
def test_units_and_axes_that_a_format_leaves_open(mesh, tmp_path, name, units, up):
    path = written(mesh, name, tmp_path, size_mm=254.0, units=units, up=up)
    extents, top, _ = size_and_top(path)
    unit = 1.0 if name == "glb" else METRES[units]
    assert extents.max() * unit == pytest.approx(0.254, rel=1e-4)
    assert top == (UP[name] if name in ("glb", "3mf") else {"y": 1, "z": 2}[up])


@pytest.mark.parametrize("name", FORMATS)
def test_where_the_origin_is(mesh, tmp_path, name):
    for origin in ("world", "center", "floor"):
        extents, top, vertices = size_and_top(written(mesh, name, tmp_path, origin=origin, size_mm=80.0))
        low, high = vertices.min(0), vertices.max(0)
        across = [axis for axis in range(3) if axis != top]
        middle = (low + high) / 2 / extents.max()
        if origin == "world":
            assert np.abs(middle).max() > 0.05
            continue
        np.testing.assert_allclose(middle[across], 0, atol=1e-5)
        assert abs(low[top] if origin == "floor" else middle[top]) < 1e-5 * extents.max()


@pytest.mark.parametrize("compress", ["none", "quantized"])
@pytest.mark.parametrize("look", ["texture", "colours"])
def test_a_placed_glb_is_read_again_in_the_world(textured, tmp_path, compress, look):
    mesh = textured if look == "texture" else replace(textured, texture=None)
    path = written(mesh, "glb", tmp_path, size_mm=60.0, origin="floor", compress=compress)
    found = read_glb(path)
    rows = mesh.texture.source if mesh.texture else slice(None)
    np.testing.assert_allclose(found.vertices, mesh.vertices[rows], atol=1e-4)
    np.testing.assert_allclose(found.normals, mesh.normals[rows], atol=0.005 if compress != "none" else 1e-6)
    if mesh.texture is None:
        np.testing.assert_allclose(found.colors, mesh.colors, atol=2e-3)
    else:
        np.testing.assert_allclose(found.texture.uv, mesh.texture.uv, atol=1e-4)
    path.write_bytes(world_glb(path))
    np.testing.assert_allclose(read_glb(path).vertices, mesh.vertices[rows], atol=1e-4)
    assert trimesh.load_scene(path).extents.max() == pytest.approx(1.6, rel=1e-3)


def test_quantized_files_are_smaller_and_open_elsewhere(tmp_path):
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.8)
    colors = np.full((len(ball.vertices), 3), 0.5, np.float32)
    vertices, normals = (np.array(values, np.float32) for values in (ball.vertices, ball.vertex_normals))
    mesh = SurfaceMesh(vertices, ball.faces.astype(np.int32), normals, colors)
    plain = written(mesh, "glb", tmp_path).stat().st_size
    path = written(mesh, "glb", tmp_path, compress="quantized")
    assert path.stat().st_size < 0.8 * plain
    loaded = trimesh.load_scene(path).to_geometry()
    assert loaded.extents.max() == pytest.approx(1.6, rel=1e-3)
    np.testing.assert_allclose(loaded.vertex_normals, y_up(normals), atol=0.02)


def test_an_unplaced_glb_has_the_bytes_that_it_had(mesh):
    document = json.loads(glb_bytes(mesh, EXTRAS)[20:].split(b"\0")[0].rpartition(b"}")[0] + b"}")
    assert "to_world" not in document["asset"]["extras"] and "extensionsUsed" not in document
    assert document["nodes"] == [{"mesh": 0, "name": "model"}]


def test_a_3mf_has_its_unit_its_words_and_a_colour_for_each_vertex(mesh, tmp_path):
    for units, name in {"mm": "millimeter", "in": "inch", "m": "meter"}.items():
        unit, vertices, colors, facts = threemf(written(mesh, "3mf", tmp_path, units=units))
        assert unit == name
    assert threemf(written(mesh, "3mf", tmp_path, size_mm=60.0))[0] == "millimeter"
    np.testing.assert_allclose(vertices, mesh.vertices, atol=1e-5)
    expected = np.round(mesh.colors * 255).astype(int)
    assert {index: "#{:02X}{:02X}{:02X}FF".format(*expected[index]) for index in colors} == {
        index: color.upper().ljust(9, "F") for index, color in colors.items()
    }
    assert facts["Title"] == EXTRAS["prompt"] and "seed: 3" in facts["Description"]


def test_what_is_no_glb_is_told_on_one_line(tmp_path):
    for content in (b"", b"hello", b"glTF" + bytes(40)):
        (tmp_path / "model.glb").write_bytes(content)
        with pytest.raises(InputError, match="is no GLB file, or cut off"):
            world_glb(tmp_path / "model.glb")


def test_the_facts_of_a_file_are_true(mesh):
    def units(**placement):
        return place(mesh, Placement(**placement), "z", None, turns=True).facts

    assert units()["units"].startswith("1 unit = 1 world unit; the object lies in") and "to_world" not in units()
    assert units(origin="floor")["units"] == "1 unit = 1 m; the longest side is 1600 mm"
    assert units(size_mm=60.0)["units"] == "1 unit = 1 mm; the longest side is 60 mm"
    assert units(size_mm=1.6)["units"] == "1 unit = 1 mm; the longest side is 1.6 mm"  # as many as world units


def test_a_prompt_with_control_characters_leaves_files_readable(mesh, tmp_path):
    write_meshes(mesh, tmp_path / "mesh", list(FORMATS), {"prompt": "a \x01 b \ud800 c"})
    assert threemf(tmp_path / "mesh" / "model.3mf")[3]["Title"] == "a b c"


def test_levels_of_detail_of_an_earlier_export_go(mesh, tmp_path):
    write_meshes(mesh, tmp_path / "mesh", ["glb", "obj"], EXTRAS, lods=[mesh, mesh, mesh])
    (tmp_path / "mesh" / "model-lodge.txt").touch()
    write_meshes(mesh, tmp_path / "mesh", ["glb"], EXTRAS, lods=[mesh])
    left = {path.name for path in (tmp_path / "mesh").iterdir()}
    assert left == {"model.glb", "model.obj", "model-lod1.glb", "model-lod1.obj", "model-lodge.txt"}


def test_a_3mf_is_a_plain_zip_file(mesh, tmp_path):
    with zipfile.ZipFile(written(mesh, "3mf", tmp_path)) as package:
        assert {(entry.extract_version, entry.extra) for entry in package.infolist()} == {(20, b"")}
        assert package.testzip() is None


def test_a_3mf_leaves_the_locale_as_it_was(mesh, tmp_path):
    before = locale.setlocale(locale.LC_ALL)
    written(mesh, "3mf", tmp_path)
    assert locale.setlocale(locale.LC_ALL) == before


@pytest.mark.parametrize("look", ["texture", "colours"])
def test_a_usdz_passes_usds_own_checks(textured, tmp_path, look):
    from pxr import UsdValidation

    mesh = textured if look == "texture" else replace(textured, texture=None)
    path = written(mesh, "usdz", tmp_path, size_mm=60.0)
    stage = Usd.Stage.Open(str(path))
    assert UsdGeom.GetStageUpAxis(stage) == "Y" and UsdGeom.GetStageMetersPerUnit(stage) == 0.001
    assert stage.HasAuthoredMetadata("upAxis") and stage.HasAuthoredMetadata("metersPerUnit")
    assert stage.GetDefaultPrim().GetPath() == "/model"
    validators = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    problems = UsdValidation.ValidationContext(validators).Validate(stage)
    assert [problem.GetMessage() for problem in problems] == []
    usd = UsdGeom.Mesh(stage.GetPrimAtPath("/model/mesh"))
    bound, _ = UsdShade.MaterialBindingAPI(usd).ComputeBoundMaterial()
    assert bound.GetPath() == "/model/material"
    values = UsdGeom.PrimvarsAPI(usd)
    if mesh.texture is None:
        light = np.array(values.GetPrimvar("displayColor").Get())
        np.testing.assert_allclose(light, srgb_to_linear(mesh.colors), atol=1e-6)
    else:
        uv = np.array(values.GetPrimvar("st").ComputeFlattened())
        np.testing.assert_allclose(1 - uv[:, 1], mesh.texture.uv[mesh.texture.faces.reshape(-1), 1], atol=1e-6)
        with zipfile.ZipFile(path) as archive:
            assert {item.filename.rpartition(".")[2] for item in archive.infolist()} == {"usdc", "png"}
            assert all(item.compress_type == zipfile.ZIP_STORED for item in archive.infolist())


@pytest.mark.parametrize("name", ["stl", "3mf"])
def test_a_slicer_slices_it_at_its_size(mesh, tmp_path, name):
    """As it comes, upright. (Of a cone the slicer leaves out the tip, which is thinner than a line.)"""
    if shutil.which("prusa-slicer") is None:
        pytest.skip("PrusaSlicer is not installed")
    cylinder = trimesh.creation.cylinder(radius=0.5, height=1.6, sections=48)
    vertices, normals = (np.array(values, np.float32) for values in (cylinder.vertices, cylinder.vertex_normals))
    solid = SurfaceMesh(vertices, cylinder.faces.astype(np.int32), normals, np.full_like(vertices, 0.5))
    path = written(solid, name, tmp_path, size_mm=60.0, origin="floor")

    def slicer(*arguments):
        done = subprocess.run(["prusa-slicer", *arguments], capture_output=True, encoding="utf-8", timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    sizes = dict(line.split(" = ") for line in slicer("--info", str(path)).splitlines() if line.startswith("size_"))
    assert float(sizes["size_z"]) == pytest.approx(60, abs=0.5)
    slicer("--export-gcode", "--output", str(tmp_path / "out.gcode"), str(path))
    lines = (tmp_path / "out.gcode").read_text(encoding="utf-8").splitlines()
    assert max(float(line[3:]) for line in lines if line.startswith(";Z:")) == pytest.approx(60, abs=0.5)


def test_gltfpack_is_asked_for_before_anything_is_made(textured, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"export\.compress=web: there is no gltfpack; install it"):
        check_packages(["glb"], "web")
    with pytest.raises(InputError, match="npm install -g gltfpack"):
        written(textured, "glb", tmp_path, compress="web")
    assert not list(tmp_path.iterdir())


def test_compression_for_the_web(textured, tmp_path):
    if shutil.which("gltfpack") is None:
        pytest.skip("gltfpack is not installed")
    plain = written(textured, "glb", tmp_path, origin="floor").stat().st_size
    path = written(textured, "glb", tmp_path, origin="floor", compress="web")
    assert path.stat().st_size < plain
    with pytest.raises(InputError, match="compressed for the web"):
        read_glb(path)


def test_a_missing_package_is_named_with_its_extra(mesh, tmp_path, monkeypatch):
    monkeypatch.setattr("nfsd3d.settings.export.find_spec", lambda name: None if name == "pxr" else object())
    with pytest.raises(InputError, match=r"usdz needs an optional package; install it: pip install 'nfsd3d\[assets\]'"):
        write_meshes(mesh, tmp_path / "mesh", ["glb", "usdz"], EXTRAS)
    assert not (tmp_path / "mesh").exists()
