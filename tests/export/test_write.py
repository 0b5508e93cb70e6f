"""Mesh files have the mesh's content, in the axes and colours of their format."""

import json
import struct
from dataclasses import replace

import imageio.v3 as imageio
import numpy as np
import pytest
import trimesh

import nfsd3d
from nfsd3d.errors import InputError
from nfsd3d.export.formats import table
from nfsd3d.export.formats.glb import glb_bytes
from nfsd3d.export.formats.placement import y_up
from nfsd3d.export.formats.table import FORMATS, write_mesh, write_meshes
from nfsd3d.generators.mesh.surface import SurfaceMesh, Texture, srgb_to_linear

EXTRAS = {"prompt": 'a "red" cube\nand snow ☃', "seed": 3}


@pytest.fixture
def mesh() -> SurfaceMesh:
    """An egg, longest along z, shifted towards its front (+x); red rises with x, and green with z."""
    sphere = trimesh.creation.icosphere(subdivisions=3)
    vertices = (sphere.vertices * [0.3, 0.4, 0.6] + [0.1, 0.0, 0.0]).astype(np.float32)
    colors = np.stack([(vertices[:, 0] + 0.2) / 0.6, np.zeros(len(vertices)), (vertices[:, 2] + 0.6) / 1.2], axis=1)
    egg = trimesh.Trimesh(vertices, sphere.faces, process=False)
    return SurfaceMesh(
        vertices, sphere.faces.astype(np.int32), egg.vertex_normals.astype(np.float32), colors.astype(np.float32)
    )


@pytest.fixture
def textured(mesh) -> SurfaceMesh:
    """The egg with one seam: the triangles of its left side have vertices of their own in the texture's lower half."""
    left = mesh.vertices[mesh.faces][:, :, 1].mean(axis=1) > 0
    uv = np.stack([(mesh.vertices[:, 0] + 0.2) / 0.6, (mesh.vertices[:, 2] + 0.6) / 1.2 * 0.49], axis=1)
    count = len(mesh.vertices)
    texture = Texture(
        np.concatenate([uv, uv + np.array([0, 0.51])]).astype(np.float32),
        np.tile(np.arange(count, dtype=np.int32), 2),
        np.where(left[:, None], mesh.faces + count, mesh.faces).astype(np.int32),
        np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8),
    )
    return replace(mesh, texture=texture)


def read_glb(content: bytes) -> tuple[dict, bytes]:
    magic, version, length = struct.unpack_from("<4sII", content)
    assert (magic, version, length) == (b"glTF", 2, len(content))
    size, kind = struct.unpack_from("<I4s", content, 12)
    assert kind == b"JSON" and size % 4 == 0
    return json.loads(content[20 : 20 + size]), content[20 + size + 8 :]


def test_glb_reloads_y_up_with_its_shape(mesh, tmp_path):
    write_mesh(mesh, tmp_path / "model.glb", EXTRAS)
    loaded = trimesh.load_scene(tmp_path / "model.glb").to_geometry()
    np.testing.assert_allclose(loaded.bounds, [[-0.4, -0.6, -0.2], [0.4, 0.6, 0.4]], atol=0.01)  # X left, Y up, Z front
    assert loaded.is_watertight
    assert loaded.volume == pytest.approx(mesh.to_trimesh().volume)  # turned, not mirrored


@pytest.mark.parametrize("count", [65534, 65535])
def test_indices_have_as_many_bits_as_they_need(tmp_path, count):
    vertices = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    faces = np.array([[0, 1, 2], [count - 3, count - 2, count - 1]], np.int32)
    normals = vertices / np.linalg.norm(vertices, axis=1, keepdims=True)
    write_mesh(SurfaceMesh(vertices, faces, normals, np.full_like(vertices, 0.5)), tmp_path / "model.glb", EXTRAS)
    document, _ = read_glb((tmp_path / "model.glb").read_bytes())
    indices = document["accessors"][document["meshes"][0]["primitives"][0]["indices"]]
    assert indices["componentType"] == (5123 if count < 65535 else 5125)
    loaded = trimesh.load_scene(tmp_path / "model.glb", process=False).to_geometry()
    np.testing.assert_allclose(loaded.vertices[loaded.faces], y_up(vertices)[faces], atol=1e-6)


def test_glb_has_metadata_normals_and_linear_colours(mesh, tmp_path):
    document, body = read_glb(glb_bytes(mesh, EXTRAS))
    assert document["asset"]["generator"] == f"nfsd3d {nfsd3d.__version__}"
    assert document["asset"]["extras"].items() >= EXTRAS.items()
    assert "+Y up" in document["asset"]["extras"]["axes"] and "world unit" in document["asset"]["extras"]["units"]
    assert len(body) == document["buffers"][0]["byteLength"]
    attributes = document["meshes"][0]["primitives"][0]["attributes"]

    def array(name, dtype, width):
        accessor = document["accessors"][attributes[name]]
        view = document["bufferViews"][accessor["bufferView"]]
        values = np.frombuffer(body, dtype, accessor["count"] * width, view["byteOffset"])
        return values.reshape(-1, width)

    np.testing.assert_array_equal(array("POSITION", "<f4", 3), y_up(mesh.vertices))
    np.testing.assert_array_equal(array("NORMAL", "<f4", 3), y_up(mesh.normals))
    colors = array("COLOR_0", "<f4", 4)
    np.testing.assert_allclose(colors[:, :3], srgb_to_linear(mesh.colors), atol=1e-6)
    assert (colors[:, 3] == 1).all()
    write_mesh(mesh, tmp_path / "model.glb", EXTRAS)
    scene = trimesh.load_scene(tmp_path / "model.glb")
    (loaded,) = scene.geometry.values()
    np.testing.assert_allclose(loaded.visual.vertex_attributes["color"], colors, atol=1e-6)
    assert scene.export(file_type="glb")  # trimesh cannot write colours without alpha that it has read


@pytest.mark.parametrize(("name", "top_axis"), [("obj", 1), ("ply", 2), ("stl", 2)])
def test_other_formats_reload_with_shape_and_up_axis(mesh, tmp_path, name, top_axis):
    write_mesh(mesh, tmp_path / f"model.{name}", EXTRAS)
    loaded = trimesh.load_mesh(tmp_path / f"model.{name}")
    assert loaded.volume == pytest.approx(mesh.to_trimesh().volume, rel=1e-3)
    assert loaded.extents.argmax() == top_axis
    if name != "stl":
        order = np.lexsort(np.round(loaded.vertices, 4).T)
        written = y_up(mesh.vertices) if name == "obj" else mesh.vertices
        expected = mesh.colors[np.lexsort(np.round(written, 4).T)]
        np.testing.assert_allclose(loaded.visual.vertex_colors[order, :3] / 255, expected, atol=0.005)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"model.{name}"]


def test_a_textured_glb_embeds_its_image_and_is_closed_across_seams(textured, tmp_path):
    (path,) = write_mesh(textured, tmp_path / "model.glb", EXTRAS)
    document, body = read_glb(path.read_bytes())
    material = document["materials"][0]["pbrMetallicRoughness"]
    assert material == {"metallicFactor": 0.0, "roughnessFactor": 1.0, "baseColorTexture": {"index": 0}}
    assert "COLOR_0" not in document["meshes"][0]["primitives"][0]["attributes"]  # it would darken the texture
    view = document["bufferViews"][document["images"][0]["bufferView"]]
    png = body[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
    np.testing.assert_array_equal(imageio.imread(png), textured.texture.image)

    loaded = trimesh.load_scene(path).to_geometry()
    assert not loaded.is_watertight  # the seam has two vertices in each place
    loaded.merge_vertices(merge_tex=True, merge_norm=True)
    assert loaded.is_watertight and loaded.is_winding_consistent
    assert loaded.volume == pytest.approx(textured.to_trimesh().volume)
    assert loaded.visual.material.baseColorTexture.size == (32, 32)


def test_an_obj_has_its_material_and_texture_beside_it_under_its_own_name(textured, tmp_path):
    first = write_mesh(textured, tmp_path / "red egg.obj", EXTRAS)
    second = write_mesh(replace(textured, texture=None), tmp_path / "plain.obj", EXTRAS)
    assert [path.name for path in first] == ["red egg.obj", "red_egg.png", "red_egg.mtl"]
    assert [path.name for path in second] == ["plain.obj"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in [*first, *second])
    np.testing.assert_array_equal(imageio.imread(first[1]), textured.texture.image)
    assert "map_Kd red_egg.png" in first[2].read_text()

    text = first[0].read_text()
    assert sum(line.startswith("v ") for line in text.splitlines()) == len(textured.vertices)  # no seams
    loaded = trimesh.load_mesh(first[0])
    assert np.asarray(loaded.visual.material.image)[..., :3].shape == (32, 32, 3)
    # Texture coordinates count from the lower left corner, there and in trimesh.
    corner = loaded.vertices[loaded.faces].reshape(-1, 3)
    places = loaded.visual.uv[loaded.faces].reshape(-1, 2)
    left = np.repeat(loaded.triangles_center[:, 0] > 0, 3)
    expected = (corner[:, 1] + 0.6) / 1.2 * 0.49 + 0.51 * left
    np.testing.assert_allclose(1 - places[:, 1], expected, atol=1e-3)


def test_text_formats_have_metadata_in_comments(mesh, tmp_path):
    write_meshes(mesh, tmp_path, ["obj", "ply", "stl"], EXTRAS)
    obj = (tmp_path / "model.obj").read_text()
    assert '# prompt: a "red" cube and snow ☃' in obj.splitlines() and "# axes: +Y up" in obj
    ply = (tmp_path / "model.ply").read_bytes().split(b"end_header")[0].decode("ascii")
    assert 'comment prompt: a "red" cube and snow \\u2603' in ply.splitlines()
    assert "comment axes: +Z up" in ply and "comment seed: 3" in ply
    assert (tmp_path / "model.stl").read_bytes().startswith(b"nfsd3d")


def test_existing_files_stay_if_a_mesh_cannot_be_written(textured, tmp_path, monkeypatch):
    (tmp_path / "model.obj").write_text("the former one")
    monkeypatch.setattr(table, "write_bytes", lambda path, content: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_mesh(textured, tmp_path / "model.obj", EXTRAS)
    assert (tmp_path / "model.obj").read_text() == "the former one"


def test_an_unknown_format_is_an_error_that_names_the_known_ones(mesh, tmp_path):
    with pytest.raises(InputError, match=r"'fbx'.*glb, obj, ply, stl, 3mf, usdz"):
        write_mesh(mesh, tmp_path / "model.fbx", EXTRAS)
    assert set(FORMATS) == {"glb", "obj", "ply", "stl", "3mf", "usdz"}
