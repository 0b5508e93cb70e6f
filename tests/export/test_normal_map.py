"""Normal maps give back the directions of a finer surface, by the rules of glTF 2.0."""

import json
import struct
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import trimesh

from nfsd3d.errors import InputError
from nfsd3d.export.extract import extract_mesh
from nfsd3d.export.formats.table import write_mesh
from nfsd3d.export.isosurface import Surface
from nfsd3d.export.level_set import LevelSet
from nfsd3d.export.texture.normal_map import bake_normal_map, unit, vertex_tangents
from nfsd3d.export.texture.unwrap import Charts, unwrap
from nfsd3d.generators.mesh.surface import SurfaceMesh, Texture, reduced
from nfsd3d.settings.export import ExportSettings, Placement

RADIUS, WAVES, HEIGHT = 0.6, 12.0, 0.02


def bumpy(points: torch.Tensor) -> torch.Tensor:
    """The density of a ball with bumps: before its softplus 50 times the distance below the surface."""
    height = HEIGHT * torch.sin(WAVES * points).prod(-1)
    return torch.nn.functional.softplus(50 * (RADIUS + height - points.norm(dim=-1)))


def true_normals(points: np.ndarray) -> np.ndarray:
    """The bumpy ball's unit normals beside ``points`` [N,3]."""
    at = torch.from_numpy(points.astype(np.float64)).requires_grad_()
    inside = RADIUS + HEIGHT * torch.sin(WAVES * at).prod(-1) - at.norm(dim=-1)
    (slope,) = torch.autograd.grad(inside.sum(), at)
    return unit(-slope.numpy())


@pytest.fixture(scope="module")
def ball() -> tuple[Surface, np.ndarray, Charts]:
    """A smooth ball of 320 triangles, unwrapped."""
    sphere = trimesh.creation.icosphere(subdivisions=2, radius=RADIUS)
    surface = Surface(sphere.vertices.astype(np.float32), sphere.faces.astype(np.int32))
    return surface, (surface.vertices / RADIUS).astype(np.float32), unwrap(surface, 256, 60)


@pytest.fixture(scope="module")
def baked(ball):
    surface, normals, charts = ball
    level_set = LevelSet(bumpy, float(np.log(2)), None, 1.0)
    return bake_normal_map(surface, normals, charts, 256, level_set, step=0.005)


def degrees(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos((a * b).sum(-1).clip(-1, 1)))


def test_a_reader_gets_the_finer_surface_s_directions(ball, baked):
    surface, normals, charts = ball
    rng = np.random.default_rng(0)
    face, weights = rng.integers(len(surface.faces), size=4000), rng.dirichlet([2, 2, 2], 4000)

    def at(values, faces):
        return np.einsum("nk,nkc->nc", weights, values[faces[face]])

    column, row = (at(charts.uv, charts.faces) * 256).astype(int).clip(0, 255).T
    local = baked.image[row, column] / 255 * 2 - 1
    normal, tangent = unit(at(normals, surface.faces)), at(baked.tangents, charts.faces)
    along = unit(tangent[:, :3])
    across = np.cross(normal, along) * np.sign(tangent[:, 3:])
    seen = unit(local[:, :1] * along + local[:, 1:2] * across + local[:, 2:] * normal)
    expected = true_normals(at(surface.vertices, surface.faces))
    assert degrees(normal, expected).mean() > 5
    assert degrees(seen, expected).mean() < 1.5
    assert np.percentile(degrees(seen, expected), 95) < 4


def test_tangents_are_unit_vectors_along_the_surface(ball, baked):
    _, normals, charts = ball
    tangents = baked.tangents
    np.testing.assert_allclose(np.linalg.norm(tangents[:, :3], axis=1), 1, atol=1e-5)
    assert np.abs((tangents[:, :3] * normals[charts.source]).sum(-1)).max() < 1e-5
    assert set(np.unique(tangents[:, 3])) <= {-1.0, 1.0}


@pytest.mark.parametrize(("mirrored", "sign"), [(False, 1.0), (True, -1.0)])
def test_tangents_point_to_the_right_in_the_image_and_bitangents_up(mirrored, sign):
    # A square in the xy plane, seen from above: x to the right, y up; v points down.
    vertices = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    uv = vertices[:, :2] * [-1 if mirrored else 1, -1] + [1 if mirrored else 0, 1]
    charts = Charts(uv.astype(np.float32), np.arange(4, dtype=np.int32), faces)
    normals = np.tile(np.array([0, 0, 1], np.float32), (4, 1))
    tangents = vertex_tangents(Surface(vertices, faces), normals, charts)
    np.testing.assert_allclose(tangents, np.tile([sign, 0, 0, sign], (4, 1)), atol=1e-6)
    bitangent = np.cross(normals, tangents[:, :3]) * tangents[:, 3:]
    np.testing.assert_allclose(bitangent, np.tile([0, 1, 0], (4, 1)), atol=1e-6)


def test_triangles_without_area_in_the_image_have_a_tangent_all_the_same():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
    charts = Charts(np.zeros((3, 2), np.float32), np.arange(3, dtype=np.int32), np.array([[0, 1, 2]], np.int32))
    normals = np.tile(np.array([0, 0, 1], np.float32), (3, 1))
    tangents = vertex_tangents(Surface(vertices, charts.faces), normals, charts)
    np.testing.assert_allclose(np.linalg.norm(tangents[:, :3], axis=1), 1, atol=1e-6)
    assert (tangents[:, 2] == 0).all()


def test_tangents_along_the_normal_are_no_obstacle(ball, monkeypatch):
    surface, normals, charts = ball
    along = np.concatenate([normals[charts.source], np.ones((len(charts.uv), 1), np.float32)], axis=1)
    monkeypatch.setattr("nfsd3d.export.texture.normal_map.vertex_tangents", lambda *arguments: along)
    level_set = LevelSet(bumpy, float(np.log(2)), None, 1.0)
    found = bake_normal_map(surface, normals, charts, 64, level_set, step=0.005)
    directions = found.image / 255 * 2 - 1
    assert np.abs(np.linalg.norm(directions, axis=-1) - 1).max() < 0.02
    assert directions[..., 2].mean() > 0.9


@pytest.fixture
def mesh(ball, baked) -> SurfaceMesh:
    surface, normals, charts = ball
    texture = Texture(charts.uv, charts.source, charts.faces, np.full((256, 256, 3), 128, np.uint8), baked)
    return SurfaceMesh(surface.vertices, surface.faces, normals, np.full_like(surface.vertices, 0.5), texture)


def glb(path) -> tuple[dict, bytes]:
    content = path.read_bytes()
    (size,) = struct.unpack("<I", content[12:16])
    return json.loads(content[20 : 20 + size]), content[20 + size + 8 :]


@pytest.mark.parametrize("compress", ["none", "quantized"])
def test_a_glb_has_the_map_and_its_tangents(mesh, tmp_path, compress):
    write_mesh(mesh, tmp_path / "model.glb", {}, Placement(compress=compress))
    document, body = glb(tmp_path / "model.glb")
    (material,) = document["materials"]
    assert material["normalTexture"] == {"index": 1} and len(document["images"]) == 2
    accessor = document["accessors"][document["meshes"][0]["primitives"][0]["attributes"]["TANGENT"]]
    kind, largest = ("<i1", 127) if compress == "quantized" else ("<f4", 1)
    start = document["bufferViews"][accessor["bufferView"]]["byteOffset"]
    tangents = np.frombuffer(body, kind, accessor["count"] * 4, start).reshape(-1, 4) / largest
    expected = mesh.texture.normal_map.tangents[:, [1, 2, 0, 3]]  # glTF's axes
    np.testing.assert_allclose(tangents, expected, atol=0.01 if compress == "quantized" else 1e-6)
    loaded = trimesh.load_scene(tmp_path / "model.glb").to_geometry()
    np.testing.assert_array_equal(np.asarray(loaded.visual.material.normalTexture), mesh.texture.normal_map.image)


def test_obj_and_usdz_have_the_map(mesh, tmp_path):
    write_mesh(mesh, tmp_path / "model.obj", {})
    assert "norm model-normals.png" in (tmp_path / "model.mtl").read_text()
    assert (tmp_path / "model-normals.png").is_file()
    write_mesh(replace(mesh, texture=replace(mesh.texture, normal_map=None)), tmp_path / "plain.obj", {})
    assert "norm" not in (tmp_path / "plain.mtl").read_text().replace("normal", "")
    pytest.importorskip("pxr")
    from pxr import Usd, UsdShade, UsdValidation

    write_mesh(mesh, tmp_path / "model.usdz", {})
    stage = Usd.Stage.Open(str(tmp_path / "model.usdz"))
    validators = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    assert UsdValidation.ValidationContext(validators).Validate(stage) == []
    surface = UsdShade.Shader(stage.GetPrimAtPath("/model/material/surface"))
    source, *_ = surface.GetInput("normal").GetConnectedSources()[0]
    assert source.source.GetPath() == "/model/material/normals"


def test_a_smaller_texture_has_no_normal_map(mesh):
    assert reduced(mesh.texture, 64).normal_map is None
    assert reduced(mesh.texture, 256).normal_map is not None


class Solid:
    """The bumpy ball as a field."""

    def density(self, positions):
        return bumpy(positions)

    def albedo(self, positions):
        return torch.full_like(positions, 0.5)


EXPORT = {
    "mesh": True,
    "formats": ["glb"],
    "resolution": 64,
    "threshold": "auto",
    "max_faces": 2000,
    "texture_size": 128,
    "turntable": False,
    "turntable_frames": 8,
    "turntable_size": 16,
    "report": False,
}


def test_meshes_and_levels_of_detail_have_normal_maps_if_asked_for():
    stages = []
    settings = ExportSettings(**EXPORT, normal_map=True, lods=[500])
    found = extract_mesh(Solid(), 1.0, settings, on_progress=lambda stage, done: stages.append((stage, done)))
    for mesh in (found.mesh, *found.lods):
        image = mesh.texture.normal_map.image
        assert image.shape == (128, 128, 3)
        assert image[..., 2].mean() > 200  # mostly outward
    plain = extract_mesh(Solid(), 1.0, ExportSettings(**EXPORT))
    assert plain.mesh.texture.normal_map is None
    np.testing.assert_array_equal(plain.mesh.texture.image, found.mesh.texture.image)
    assert "normal map" in {stage for stage, _ in stages}
    assert all(before[1] <= after[1] for before, after in pairwise(stages))


def test_a_normal_map_needs_a_texture():
    with pytest.raises(InputError, match=r"export\.normal_map=true: needs a texture; raise --texture-size"):
        ExportSettings(**{**EXPORT, "texture_size": 0}, normal_map=True)
