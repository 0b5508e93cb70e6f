"""Mesh files say the same as the mesh, in the axes and colours of their format."""

import json
import struct

import numpy as np
import pytest
import trimesh

from nfsd3d.errors import InputError
from nfsd3d.export.mesh import SurfaceMesh
from nfsd3d.export.simplify import simplify_mesh
from nfsd3d.export.write import FORMATS, glb_bytes, srgb_to_linear, write_mesh, y_up

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


def test_glb_says_where_it_comes_from_and_keeps_normals_and_linear_colours(mesh):
    document, body = read_glb(glb_bytes(mesh, EXTRAS))
    assert document["asset"]["generator"] == "nfsd3d"
    assert document["asset"]["extras"].items() >= EXTRAS.items()
    assert len(body) == document["buffers"][0]["byteLength"]
    attributes = document["meshes"][0]["primitives"][0]["attributes"]

    def array(name, dtype, width):
        accessor = document["accessors"][attributes[name]]
        view = document["bufferViews"][accessor["bufferView"]]
        values = np.frombuffer(body, dtype, accessor["count"] * width, view["byteOffset"])
        return values.reshape(-1, width)

    np.testing.assert_array_equal(array("POSITION", "<f4", 3), y_up(mesh.vertices))
    np.testing.assert_array_equal(array("NORMAL", "<f4", 3), y_up(mesh.normals))
    colors = array("COLOR_0", "<u2", 4) / 65535
    np.testing.assert_allclose(colors[:, :3], srgb_to_linear(mesh.colors), atol=1e-5)
    assert (colors[:, 3] == 1).all()


def test_srgb_to_linear_at_known_values():
    known = {0.0: 0.0, 0.04045: 0.0031308, 0.5: 0.2140411, 1.0: 1.0}
    np.testing.assert_allclose(srgb_to_linear(np.array(list(known))), list(known.values()), atol=1e-6)


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


def test_an_unknown_format_is_an_error_that_names_the_known_ones(mesh, tmp_path):
    with pytest.raises(InputError, match=r"'fbx'.*glb, obj, ply, stl"):
        write_mesh(mesh, tmp_path / "model.fbx", EXTRAS)
    assert set(FORMATS) == {"glb", "obj", "ply", "stl"}


def test_simplification_keeps_shape_normals_and_colours(mesh):
    small = simplify_mesh(mesh, 400)
    assert len(small.faces) <= 400
    shape = small.to_trimesh()
    assert shape.is_watertight and shape.volume == pytest.approx(mesh.to_trimesh().volume, rel=0.03)
    np.testing.assert_allclose(np.linalg.norm(small.normals, axis=1), 1, atol=1e-5)
    assert ((small.normals * (small.vertices - [0.1, 0, 0])).sum(1) > 0).all()
    np.testing.assert_allclose(small.colors[:, 0], (small.vertices[:, 0] + 0.2) / 0.6, atol=0.1)
    assert simplify_mesh(mesh, 10**6) is mesh
