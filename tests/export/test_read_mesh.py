"""A user's mesh file is read as it is, placed in the world, repaired with a note, or refused on one line."""

import base64
import io
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from nfsd3d.errors import InputError
from nfsd3d.export.formats.source import messages
from nfsd3d.export.formats.source.atlas import PADDING
from nfsd3d.export.formats.source.mesh import read_mesh
from nfsd3d.export.formats.source.placement import FILL
from nfsd3d.export.formats.source.siblings import decoded_image
from nfsd3d.export.formats.table import write_mesh
from nfsd3d.generators.mesh.surface import SurfaceMesh, Texture, linear_to_srgb, srgb_to_linear
from nfsd3d.settings.export import Placement

CUBE = trimesh.creation.box(extents=(1.0, 1.0, 1.0))
TRIANGLE = "v 0 0 0\nv 1 0 0\nv 0 1 0\n"
PLY_HEADER = (
    "ply\nformat {} 1.0\nelement vertex {}\nproperty float x\nproperty float y\nproperty float z\n{}"
    "element face {}\nproperty list uchar int vertex_indices\n{}end_header\n"
)


@pytest.fixture
def mesh() -> SurfaceMesh:
    """An egg, longest along z, shifted towards its front (+x)."""
    sphere = trimesh.creation.icosphere(subdivisions=2)
    vertices = (sphere.vertices * [0.3, 0.4, 0.6] + [0.1, 0.0, 0.0]).astype(np.float32)
    normals = trimesh.Trimesh(vertices, sphere.faces, process=False).vertex_normals.astype(np.float32)
    colors = np.random.default_rng(0).random(vertices.shape).astype(np.float32)
    return SurfaceMesh(vertices, sphere.faces.astype(np.int32), normals, colors)


@pytest.fixture
def textured(mesh) -> SurfaceMesh:
    """The egg with a seam; some of its UV positions need all bits of a 32-bit number."""
    left = mesh.vertices[mesh.faces][:, :, 1].mean(axis=1) > 0
    count = len(mesh.vertices)
    source, faces = np.unique(np.where(left[:, None], mesh.faces + count, mesh.faces), return_inverse=True)
    uv = np.random.default_rng(1).random((len(source), 2)).astype(np.float32)
    uv[::7] *= np.float32(1e-6)
    image = np.random.default_rng(2).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    texture = Texture(uv, (source % count).astype(np.int32), faces.astype(np.int32), image)
    return replace(mesh, texture=texture)


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def exported(folder: Path, mesh: trimesh.Trimesh, name: str) -> Path:
    """A file that trimesh writes."""
    mesh.export(folder / name)
    return folder / name


def png(*texels, size=(4, 4)) -> bytes:
    """An image of stripes."""
    image = Image.fromarray(np.array([texels], np.uint8)).resize(size, Image.Resampling.NEAREST)
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 128, 0)


class Gltf:
    """A GLB under construction."""

    def __init__(self):
        self.body = b""
        self.document = {"asset": {"version": "2.0"}, "bufferViews": [], "accessors": [], "meshes": []}

    def view(self, content: bytes, **more) -> int:
        self.document["bufferViews"].append(
            {"buffer": 0, "byteOffset": len(self.body), "byteLength": len(content), **more}
        )
        self.body += content + b"\0" * (-len(content) % 4)
        return len(self.document["bufferViews"]) - 1

    def array(self, values, dtype="<f4", **more) -> int:
        values = np.asarray(values, dtype)
        component = {"<f4": 5126, "<u4": 5125, "<u2": 5123, "<i2": 5122, "<u1": 5121}[dtype]
        kind = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}[values[0].size]
        accessor = {"bufferView": self.view(values.tobytes()), "componentType": component, "count": len(values)}
        self.document["accessors"].append({**accessor, "type": kind, **more})
        return len(self.document["accessors"]) - 1

    def mesh(self, positions, faces=None, mode=None, **attributes) -> dict:
        """Adds a mesh of one primitive; returns it. Integer attributes are numbers of accessors."""
        arrays = {
            name: values if isinstance(values, int) else self.array(values) for name, values in attributes.items()
        }
        position = positions if isinstance(positions, int) else self.array(positions)
        primitive = {"attributes": {"POSITION": position, **arrays}}
        if faces is not None:
            primitive["indices"] = self.array(np.reshape(faces, -1), "<u2")
        if mode is not None:
            primitive["mode"] = mode
        self.document["meshes"].append({"primitives": [primitive]})
        return primitive

    def material(self, image: bytes | None = None, **values) -> int:
        pbr = values
        if image is not None:
            images = self.document.setdefault("images", [])
            images.append({"bufferView": self.view(image), "mimeType": "image/png"})
            self.document.setdefault("textures", []).append({"source": len(images) - 1})
            pbr = {"baseColorTexture": {"index": len(images) - 1}, **values}
        self.document.setdefault("materials", []).append({"pbrMetallicRoughness": pbr})
        return len(self.document["materials"]) - 1

    def write(self, folder: Path, **more) -> Path:
        """Writes it, with a node for each mesh unless there are nodes."""
        document = {**self.document, "buffers": [{"byteLength": len(self.body)}], **more}
        document.setdefault("nodes", [{"mesh": index} for index in range(len(document["meshes"]))])
        document.setdefault("scenes", [{"nodes": list(range(len(document["nodes"])))}])
        text = json.dumps(document).encode()
        text += b" " * (-len(text) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(self.body), b"BIN\0")
        header = struct.pack("<4sII", b"glTF", 2, 12 + len(chunks) + len(self.body))
        return written(folder, "model.glb", header + chunks + self.body)


def flat_cube() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Positions [24,3], faces, normals and UVs of a cube whose sides have vertices of their own, as in most GLBs."""
    corners, normals, uv, faces = [], [], [], []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.5
            side = np.insert(square * [sign, 1], axis, 0.5 * sign, axis=1)
            side = side if axis != 1 else side[::-1]  # outward
            faces += [[len(corners) + k for k in triangle] for triangle in ((0, 1, 2), (0, 2, 3))]
            corners += list(side)
            normals += [np.eye(3)[axis] * sign] * 4
            uv += list(square + 0.5)
    return np.array(corners), np.array(faces), np.array(normals), np.array(uv, np.float32)


def shown(mesh: SurfaceMesh, vertex: int) -> np.ndarray:
    """[3] the texel at a texture vertex."""
    column, row = (mesh.texture.uv[vertex] * mesh.texture.size).astype(int).clip(0, mesh.texture.size - 1)
    return mesh.texture.image[row, column]


def volume(mesh: SurfaceMesh) -> float:
    return float(trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).volume)


# Files of this package


def assert_in_place(source, mesh, tolerance=0.0):
    """Same triangles at the same places, as they were in the world."""
    assert (source.scale, source.shift.tolist()) == (1.0, [0.0, 0.0, 0.0])
    read = source.mesh
    np.testing.assert_allclose(read.vertices[read.faces], mesh.vertices[mesh.faces], rtol=0, atol=tolerance)
    assert len(read.vertices) == len(mesh.vertices)
    np.testing.assert_allclose(source.file_vertices @ source.rotation.T.astype(np.float32), read.vertices)
    assert np.linalg.det(source.rotation) == pytest.approx(1)
    assert (read.vertices.dtype, read.faces.dtype, read.normals.dtype) == (np.float32, np.int32, np.float32)


def test_a_textured_glb_of_this_package_is_read_bit_for_bit(textured, tmp_path):
    (path,) = write_mesh(textured, tmp_path / "model.glb", {})
    source = read_mesh(path, 1.0)
    assert_in_place(source, textured)
    texture, read = textured.texture, source.mesh.texture
    np.testing.assert_array_equal(read.uv[read.faces], texture.uv[texture.faces])
    np.testing.assert_array_equal(read.image, texture.image)
    np.testing.assert_array_equal(read.source[read.faces], source.mesh.faces)
    assert source.notes == ()
    again = read_mesh(write_mesh(source.mesh, tmp_path / "again.glb", {})[0], 1.0)
    np.testing.assert_array_equal(again.mesh.vertices, source.mesh.vertices)
    np.testing.assert_array_equal(again.mesh.faces, source.mesh.faces)


@pytest.mark.parametrize(("name", "tolerance"), [("glb", 0.0), ("ply", 0.0), ("obj", 1e-6), ("stl", 0.0)])
def test_other_files_of_this_package_are_read_in_place(mesh, tmp_path, name, tolerance):
    (path,) = write_mesh(mesh, tmp_path / f"model.{name}", {"prompt": "an egg"})
    source = read_mesh(path, 1.0)
    assert_in_place(source, mesh, tolerance)
    assert source.mesh.texture is None
    if name == "stl":
        assert source.notes == ("has no colours: it is grey",)
        assert (source.mesh.colors == 0.5).all()
        return
    assert source.notes == ()
    np.testing.assert_array_equal(source.mesh.faces, mesh.faces)
    np.testing.assert_allclose(source.mesh.colors, mesh.colors, atol=1 / 255)
    np.testing.assert_allclose(source.mesh.normals, mesh.normals, atol=1e-4)


def test_a_textured_obj_of_this_package_is_read_with_its_material_and_texture(textured, tmp_path):
    path, *_ = write_mesh(textured, tmp_path / "red egg.obj", {})
    source = read_mesh(path, 1.0)
    assert_in_place(source, textured, 1e-6)
    texture, read = textured.texture, source.mesh.texture
    np.testing.assert_allclose(read.uv[read.faces], texture.uv[texture.faces], atol=1e-6)  # 6 digits in the file
    np.testing.assert_array_equal(read.image, texture.image)
    assert source.notes == ()


@pytest.mark.parametrize(("name", "up"), [("obj", "z"), ("obj", "y"), ("ply", "y"), ("stl", "y")])
def test_a_file_of_this_package_names_its_upward_axis(mesh, tmp_path, name, up):
    path, *_ = write_mesh(mesh, tmp_path / f"model.{name}", {}, Placement(up=up))
    assert_in_place(read_mesh(path, 1.0), mesh, 1e-6)


@pytest.mark.parametrize("placement", [Placement(size_mm=60, origin="floor"), Placement(origin="center")])
def test_a_glb_that_was_exported_elsewhere_is_moved_back(mesh, tmp_path, placement):
    (path,) = write_mesh(mesh, tmp_path / "model.glb", {}, placement)
    source = read_mesh(path, 1.0)
    np.testing.assert_allclose(source.mesh.vertices, mesh.vertices, atol=1e-6)
    moved = source.scale * source.file_vertices @ source.rotation.T + source.shift
    np.testing.assert_allclose(moved, source.mesh.vertices, atol=1e-6)
    assert "moved back" in source.notes[0]


def test_a_quantized_glb_is_read(textured, tmp_path):
    (path,) = write_mesh(textured, tmp_path / "model.glb", {}, Placement(compress="quantized"))
    source = read_mesh(path, 1.0)
    np.testing.assert_allclose(
        source.mesh.vertices[source.mesh.faces], textured.vertices[textured.faces], atol=0.6 / 32767
    )
    np.testing.assert_allclose(np.linalg.norm(source.mesh.normals, axis=1), 1, atol=1e-6)


# Placement


def test_a_mesh_in_millimetres_is_scaled_and_centred(tmp_path):
    box = trimesh.creation.box(extents=(10.0, 20.0, 40.0))
    path = exported(tmp_path, box.apply_translation([100.0, 0.0, -7.0]), "box.STL")
    source = read_mesh(path, 2.0)
    vertices = source.mesh.vertices
    np.testing.assert_allclose(np.ptp(vertices, axis=0), np.array([0.25, 0.5, 1.0]) * 2 * FILL * 2.0, rtol=1e-6)
    np.testing.assert_allclose(vertices.min(0), -vertices.max(0), atol=1e-6)
    moved = source.scale * source.file_vertices @ source.rotation.T + source.shift
    np.testing.assert_allclose(moved, vertices, atol=1e-5)
    assert source.notes[:2] == (
        "does not name its upward axis: z is taken, as is usual in STL",
        "has a size of 10 x 20 x 40 units: it is scaled by 0.08 and centred",
    )


@pytest.mark.parametrize(("side", "kept"), [(0.19, False), (0.21, True), (1.99, True), (2.01, False)])
def test_a_mesh_of_a_fitting_size_inside_the_cube_stays(tmp_path, side, kept):
    source = read_mesh(exported(tmp_path, trimesh.creation.box(extents=(side,) * 3), "box.ply"), 1.0)
    assert (source.scale == 1) == kept
    assert any("scaled" in note for note in source.notes) != kept


def test_the_upward_axis_is_turned_to_z(tmp_path):
    cone = trimesh.creation.cone(radius=0.2, height=1.0)  # tip at +z
    path = exported(tmp_path, cone, "cone.ply")
    assert read_mesh(path, 1.0).mesh.vertices.max(0)[2] == pytest.approx(1.0)
    turned = read_mesh(path, 1.0, up="y")
    assert turned.mesh.vertices.max(0)[0] == pytest.approx(1.0)  # the file's +z is the front
    assert volume(turned.mesh) == pytest.approx(cone.volume, rel=1e-5)


# Refused


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    cube, quiet = CUBE.export(file_type="glb"), PLY_HEADER.format("ascii", 3, "", 0, "")
    (folder / "folder.glb").mkdir()
    draco = Gltf()
    draco.mesh([[0, 0, 0]] * 3)
    points = Gltf()
    points.mesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], mode=0)
    compressed = [draco.write(folder, extensionsRequired=["KHR_draco_mesh_compression"]).rename(folder / "draco.glb")]
    compressed += [draco.write(folder, extensionsRequired=["EXT_meshopt_compression"]).rename(folder / "web.glb")]
    binary = CUBE.export(file_type="stl")
    return {
        "missing": (folder / "none.obj", "no such file"),
        "directory": (folder / "folder.glb", "is a directory"),
        "unknown": (written(folder, "a.fbx", "x"), "convert it to one of glb, obj, ply, stl"),
        "without suffix": (written(folder, "mesh", "x"), "convert it to one of glb, obj, ply, stl"),
        "gltf": (written(folder, "a.gltf", "{}"), "as one .glb"),
        "draco": (compressed[0], "KHR_draco_mesh_compression"),
        "meshopt": (compressed[1], "EXT_meshopt_compression"),
        "points glb": (points.write(folder).rename(folder / "points.glb"), "no triangles"),
        "points obj": (written(folder, "points.obj", TRIANGLE), "no triangles"),
        "points ply": (written(folder, "points.ply", quiet + "0 0 0\n1 0 0\n0 1 0\n"), "no triangles"),
        "no faces stl": (written(folder, "none.stl", b"\0" * 84), "no triangles"),
        "text": (written(folder, "words.obj", "once upon a time"), "no triangles"),
        "corrupt obj": (written(folder, "corrupt.obj", "v a b c\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"), "damaged"),
        "flat points": (written(folder, "plane.obj", "v 0 0\nv 1 0\nv 0 1\nf 1 2 3\n"), "three coordinates"),
        "no asset": (draco.write(folder, asset=[]).rename(folder / "asset.glb"), "damaged"),
        "no data": (draco.write(folder, buffers=[]).rename(folder / "data.glb"), "damaged"),
        "index": (written(folder, "index.obj", TRIANGLE + "f 1 2 9\n"), "damaged"),
        "cut glb": (written(folder, "cut.glb", cube[:-20]), "damaged"),
        "no glb": (written(folder, "words.glb", b"once upon a time there was"), "damaged"),
        "cut stl": (written(folder, "cut.stl", binary[:-20]), "names 12 triangles, and it has 11"),
        "cut ply": (written(folder, "cut.ply", CUBE.export(file_type="ply")[:-20]), "with triangles only"),
        "cut ascii ply": (written(folder, "ascii.ply", CUBE.export(file_type="ply", encoding="ascii")[:-40]), "early"),
        "no header": (written(folder, "header.ply", "ply\nformat ascii 1.0\n"), "damaged"),
        **{
            f"empty {name}": (written(folder, f"empty.{name}", b""), "is empty")
            for name in ("glb", "obj", "ply", "stl")
        },
        "flat": (written(folder, "flat.obj", "v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\nf 1 1 2\n"), "2 triangles have zero"),
    }


def test_bad_files_are_refused_on_one_line_that_names_the_setting(tmp_path):
    for case, (path, says) in bad_files(tmp_path).items():
        with pytest.raises(InputError) as caught:
            read_mesh(path, 1.0)
        message = str(caught.value)
        assert message.startswith(f"source_mesh={path}: ") and "\n" not in message, case
        assert says in message, (case, message)


@pytest.mark.parametrize("name", ["glb", "obj", "ply", "stl"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_positions_that_are_not_finite_are_counted_and_refused(tmp_path, name, value):
    vertices = CUBE.vertices.copy()
    vertices[2, 1] = value
    if name == "obj":
        lines = [f"v {x} {y} {z}" for x, y, z in vertices] + [f"f {a} {b} {c}" for a, b, c in CUBE.faces + 1]
        path = written(tmp_path, "cube.obj", "\n".join(lines))
    else:
        with np.errstate(invalid="ignore", over="ignore"):
            path = exported(tmp_path, trimesh.Trimesh(vertices, CUBE.faces, process=False), f"cube.{name}")
    with pytest.raises(
        InputError, match=r"source_mesh=.*of its \d+ vertices have positions that are not finite; delete"
    ):
        read_mesh(path, 1.0)


@pytest.mark.parametrize("name", ["glb", "obj", "ply", "stl"])
def test_too_many_triangles_are_refused(tmp_path, name, monkeypatch):
    path = exported(tmp_path, CUBE, f"cube.{name}")
    monkeypatch.setattr(messages, "MAX_TRIANGLES", 12)
    read_mesh(path, 1.0)
    monkeypatch.setattr(messages, "MAX_TRIANGLES", 11)
    with pytest.raises(InputError, match=r"source_mesh=.*has 12 triangles, and the limit is 11; simplify"):
        read_mesh(path, 1.0)


def test_a_glb_that_this_package_compressed_for_the_web_is_refused_with_the_remedy(tmp_path):
    path = Gltf().write(tmp_path, asset={"generator": "nfsd3d 1"}, extensionsRequired=["EXT_meshopt_compression"])
    with pytest.raises(InputError, match=r"EXT_meshopt_compression, .*--compress none"):
        read_mesh(path, 1.0)


def test_too_many_triangles_are_refused_from_the_header_alone(tmp_path):
    ply = written(tmp_path, "a.ply", PLY_HEADER.format("binary_little_endian", 3, "", 3_000_000, ""))
    glb = Gltf()
    glb.document["accessors"] += [{"count": 3}, {"count": 9_000_000}]
    glb.document["meshes"].append({"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]})
    for path in (ply, glb.write(tmp_path)):
        with pytest.raises(InputError, match="has 3,000,000 triangles, and the limit is 2,000,000"):
            read_mesh(path, 1.0)


# Repaired


def test_zero_area_and_duplicate_triangles_and_unused_vertices_are_removed_with_notes(tmp_path):
    vertices = np.vstack([[[9.0, 9.0, 9.0]], CUBE.vertices, [[0.0, 0.0, 0.0]]])
    first = CUBE.faces[0] + 1
    extra = [first, np.roll(first, 1), [1, 1, 2], [1, 9, 8]]  # twice again, a repeated corner, a diagonal
    faces = np.vstack([CUBE.faces + 1, extra])
    ascii = PLY_HEADER.format("ascii", len(vertices), "", len(faces), "")
    rows = [" ".join(map(str, row)) for row in vertices] + [f"3 {a} {b} {c}" for a, b, c in faces]
    source = read_mesh(written(tmp_path, "cube.ply", ascii + "\n".join(rows) + "\n"), 1.0)
    np.testing.assert_array_equal(source.mesh.faces, CUBE.faces)
    np.testing.assert_allclose(source.mesh.vertices, CUBE.vertices, atol=1e-7)
    assert source.notes == (
        "has 1 vertex without triangles: dropped",
        "does not name its upward axis: z is taken, as is usual in PLY",
        "has 2 triangles of zero area: removed",
        "has 2 duplicate triangles: removed",
        "has no colours: it is grey",
    )


def test_the_back_of_a_sheet_is_kept(tmp_path):
    source = read_mesh(written(tmp_path, "sheet.obj", TRIANGLE + "f 1 2 3\nf 1 3 2\n"), 1.0)
    np.testing.assert_array_equal(source.mesh.faces, [[0, 1, 2], [0, 2, 1]])
    assert not any("holes" in note or "inside out" in note for note in source.notes)


@pytest.mark.parametrize("name", ["glb", "obj", "ply", "stl"])
def test_an_inside_out_mesh_is_turned(tmp_path, name):
    inverted = CUBE.copy()
    inverted.invert()
    mesh = read_mesh(path := exported(tmp_path, inverted, f"cube.{name}"), 1.0).mesh
    assert volume(mesh) == pytest.approx(1, rel=1e-5)
    assert ((mesh.normals * mesh.vertices).sum(axis=1) > 0.5).all()
    assert "is inside out: its triangles are turned round" in read_mesh(path, 1.0).notes


def test_an_inside_out_texture_stays_on_its_triangles(textured, tmp_path):
    texture = replace(textured.texture, faces=textured.texture.faces[:, ::-1])
    (path,) = write_mesh(replace(textured, faces=textured.faces[:, ::-1], texture=texture), tmp_path / "a.glb", {})
    read = read_mesh(path, 1.0).mesh
    np.testing.assert_array_equal(read.vertices[read.faces], textured.vertices[textured.faces])
    np.testing.assert_array_equal(read.texture.uv[read.texture.faces], textured.texture.uv[textured.texture.faces])


def test_holes_are_kept_with_a_note(tmp_path):
    open_cube = trimesh.Trimesh(CUBE.vertices, CUBE.faces[1:], process=False)
    open_cube.invert()
    source = read_mesh(exported(tmp_path, open_cube, "cube.ply"), 1.0)
    np.testing.assert_array_equal(source.mesh.faces, open_cube.faces)
    assert "has holes (3 open edges): it is optimised as an open surface" in source.notes


def test_triangles_that_face_opposite_ways_are_noted(tmp_path):
    faces = CUBE.faces.copy()
    faces[0] = faces[0, ::-1]
    source = read_mesh(exported(tmp_path, trimesh.Trimesh(CUBE.vertices, faces, process=False), "cube.ply"), 1.0)
    assert "has 3 edges between triangles that face opposite ways: kept as they are" in source.notes


@pytest.mark.parametrize("name", ["obj", "ascii.ply", "binary.ply"])
def test_polygons_are_triangulated(tmp_path, name):
    corners = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]]
    quads = np.array([[3, 2, 1, 0], [4, 5, 6, 7], [0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7]])
    rows = "".join(f"{x} {y} {z}\n" for x, y, z in corners)
    if name == "obj":
        rows = "".join(f"v {row}\n" for row in rows.splitlines())
        path = written(tmp_path, "cube.obj", rows + "".join(f"f {a} {b} {c} {d}\n" for a, b, c, d in quads + 1))
    elif name == "ascii.ply":
        header = PLY_HEADER.format("ascii", 8, "", 6, "")
        path = written(tmp_path, name, header + rows + "".join(f"4 {a} {b} {c} {d}\n" for a, b, c, d in quads))
    else:
        header = PLY_HEADER.format("binary_little_endian", 8, "", 6, "").encode()
        body = np.array(corners, "<f4").tobytes() + b"".join(struct.pack("<B4i", 4, *quad) for quad in quads)
        path = written(tmp_path, name, header + body)
    source = read_mesh(path, 1.0)
    assert volume(source.mesh) == pytest.approx(source.scale**3, rel=1e-5)
    assert "has polygons: they are cut into 12 triangles" in source.notes


def test_triangles_and_larger_polygons_in_one_obj_are_triangulated(tmp_path):
    text = TRIANGLE + "v -1 1 0\nv -1 0 0\nf 1 2 3\nf 1 3 4 5\n"
    source = read_mesh(written(tmp_path, "a.obj", text), 1.0)
    np.testing.assert_array_equal(source.mesh.faces, [[0, 1, 2], [0, 2, 3], [3, 4, 0]])
    assert "has polygons: they are cut into 3 triangles" in source.notes


# Vertices


def test_vertices_along_seams_become_one_and_keep_their_uv_positions(tmp_path):
    positions, faces, normals, uv = flat_cube()
    glb = Gltf()
    glb.mesh(positions, faces, NORMAL=normals, TEXCOORD_0=uv)["material"] = glb.material(png(RED, BLUE))
    source = read_mesh(glb.write(tmp_path), 1.0)
    mesh, texture = source.mesh, source.mesh.texture
    assert (len(mesh.vertices), len(texture.uv)) == (8, 24)
    assert not any("hole" in note for note in source.notes) and volume(mesh) == pytest.approx(1)
    np.testing.assert_array_equal(source.file_vertices[texture.source], positions)
    np.testing.assert_array_equal(texture.uv, uv)
    np.testing.assert_array_equal(texture.faces, faces)
    np.testing.assert_array_equal(texture.source[texture.faces], mesh.faces)
    np.testing.assert_allclose(mesh.normals, mesh.vertices * 2 / np.sqrt(3), atol=1e-6)


def test_nearby_vertices_stay_apart_and_signs_of_zero_do_not(tmp_path):
    other = "v -0 0 -0.0\nv 1 1e-7 0\nv 1 -1 0\n"
    source = read_mesh(written(tmp_path, "a.obj", TRIANGLE + other + "f 1 2 3\nf 4 6 5\n"), 1.0)
    np.testing.assert_array_equal(source.mesh.faces, [[0, 1, 2], [0, 4, 3]])


def test_vertices_keep_their_order_and_their_file_positions(tmp_path):
    text = "v 5 0 0\nv 3 0 0\nv 4 2 0\nv 1 1 1\nf 3 1 2\nf 4 2 1\n"
    source = read_mesh(written(tmp_path, "a.obj", text), 1.0)
    np.testing.assert_array_equal(source.file_vertices, [[5, 0, 0], [3, 0, 0], [4, 2, 0], [1, 1, 1]])
    np.testing.assert_array_equal(source.mesh.faces, [[2, 0, 1], [3, 1, 0]])


def test_far_from_the_origin_vertices_stay_apart(tmp_path):
    lines = [f"v {x + 4.5e6} {y + 5e6} {z}" for x, y, z in CUBE.vertices / 100]
    faces = [f"f {a} {b} {c}" for a, b, c in CUBE.faces + 1]
    source = read_mesh(written(tmp_path, "a.obj", "\n".join(lines + faces)), 1.0)
    assert len(source.mesh.vertices) == 8 and volume(source.mesh) == pytest.approx((2 * FILL) ** 3, rel=1e-4)


def test_relative_indices_comments_tabs_and_indents_of_an_obj(tmp_path):
    plain = TRIANGLE + "f 1 2 3\nv 0 0 1\nv 1 0 1\nv 0 1 1\nf 4 5 6\n"
    odd = "v\t0 0 0\n  v 1 0 0 # right\nv 0 1 0\nf -3 -2 -1 # first\nv 0 0 1\r\nv 1 0 1\nv 0 1\t1\nf -3//  -2 -1\n"
    expected, source = (
        read_mesh(written(tmp_path, name, text), 1.0) for name, text in [("a.obj", plain), ("b.obj", odd)]
    )
    np.testing.assert_array_equal(source.mesh.vertices, expected.mesh.vertices)
    np.testing.assert_array_equal(source.mesh.faces, expected.mesh.faces)


@pytest.mark.parametrize(
    ("text", "faces"),
    [
        ("f 1 2 3 4 5 6\nf 1/1 2/2 7/3\n", [[0, 1, 2], [0, 2, 3], [0, 3, 4], [0, 4, 5], [0, 1, 6]]),
        ("f 1 2 3 4 5 6\nf 1//1 2//1 7//1\n", [[0, 1, 2], [0, 2, 3], [0, 3, 4], [0, 4, 5], [0, 1, 6]]),
        ("f 1/1/1 2/2/1 3/3/1\nf 1//1 3//1 7//1\n", [[0, 1, 2], [0, 2, 6]]),
        ("f 1/1 2// 3//1\nf 1/ 3/2/ 7/3/1\n", [[0, 1, 2], [0, 2, 6]]),
        ("f 1/1 2/2 7/3\nf 1 2\nf 1/1/1 2/2/1 3/3/1 4/1/1\n", [[0, 1, 6], [0, 1, 2], [0, 2, 3]]),
    ],
)
def test_faces_of_several_forms_stay_what_they_are(tmp_path, text, faces):
    points = [[0, 0, 0], [2, 0, 0], [3, 1, 0], [2, 2, 0], [0, 2, 0], [-1, 1, 0], [0, 0, 1]]
    rows = "".join(f"v {x} {y} {z}\n" for x, y, z in points) + "vt 0 0\nvt 1 0\nvt 0 1\nvn 0 0 1\n"
    source = read_mesh(written(tmp_path, "a.obj", rows + text), 2.0)
    expected = np.array(points, np.float32)[faces]
    read = source.file_vertices[source.mesh.faces]
    # Triangles may begin at any corner.
    turns = [(np.roll(expected, turn, axis=1) == read).all(axis=(1, 2)) for turn in range(3)]
    assert len(read) == len(faces) and np.any(turns, axis=0).all()


def test_continued_lines_of_an_obj_are_joined(tmp_path):
    text = "# saved as C:\\models\\\nv 0 0 \\\n 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf 1 \\ \n2\\\n 3 \\\n 4\n"
    for ending in ("\n", "\r\n", "\r"):
        source = read_mesh(written(tmp_path, "a.obj", text.replace("\n", ending)), 1.0)
        np.testing.assert_array_equal(source.file_vertices, [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
        assert len(source.mesh.faces) == 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("f 1 2 4", "line 6: there is no vertex 4"),
        ("f 1 2 -4", "line 6: there is no vertex -4"),
        ("f 1 2 0", "line 6: there is no vertex 0"),
        ("f 1 2 99999999999999999999", "line 6: there is no vertex"),
        ("f 1/1 2/1 3/2", "line 6: there is no UV position 2"),
        ("f 1//1 2//-2 3//1", "line 6: there is no normal -2"),
        ("f 1 2 x", "line 6 is unreadable: f 1 2 x"),
        ("f 1 2 3-1", "line 6 is unreadable"),
        ("f 1 2 3.5", "line 6 is unreadable"),
        ("f 1/1/1/1 2 3", "line 6 is unreadable"),
        ("f /1 2 3", "line 6 is unreadable"),
        ("v 1 1-1", "line 6 is unreadable"),
        ("v 1,5 0 0", "line 6 is unreadable: v 1,5 0 0"),
        ("v 1 2 # 3", "line 6: a vertex has less than three coordinates"),
        ("vt", "line 6 is unreadable: vt"),
    ],
)
def test_a_damaged_line_of_an_obj_is_named(tmp_path, line, says):
    text = f"v 0 0 0\nv 1 \\\n0 0\nv 0 1 0\n\n{line}\nvt 0 0\nvn 0 0 1\nf 1 2 3\n"
    with pytest.raises(InputError) as caught:
        read_mesh(written(tmp_path, "a.obj", text), 1.0)
    assert f"a.obj: cannot be read as OBJ ({says}" in str(caught.value) and "\n" not in str(caught.value)


def test_indices_of_uv_positions_and_normals_that_a_file_has_not_are_ignored(tmp_path):
    source = read_mesh(written(tmp_path, "a.obj", TRIANGLE + "f 1/1/1 2/2/2 3/3/3\n"), 1.0)
    np.testing.assert_array_equal(source.mesh.faces, [[0, 1, 2]])
    assert source.mesh.texture is None


@pytest.mark.parametrize("content", [CUBE.export(file_type="stl") + b"more", CUBE.export(file_type="stl_ascii")])
def test_binary_and_ascii_stl_become_a_closed_mesh(tmp_path, content):
    mesh = read_mesh(written(tmp_path, "cube.stl", content), 1.0).mesh
    assert (len(mesh.vertices), len(mesh.faces)) == (8, 12) and volume(mesh) == pytest.approx(1)


# Scenes of a GLB


def test_nodes_place_and_mirror_their_meshes(tmp_path):
    glb = Gltf()
    glb.mesh(CUBE.vertices, CUBE.faces)
    half = np.sqrt(0.5)
    nodes = [
        {"children": [1, 2], "scale": [2, 2, 2], "rotation": [0, 0, half, half]},  # x to y
        {"mesh": 0, "translation": [3, 0, 0]},
        {"mesh": 0, "matrix": [-1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]},  # mirrored
    ]
    source = read_mesh(glb.write(tmp_path, nodes=nodes, scenes=[{"nodes": [0]}]), 1.0)
    np.testing.assert_allclose(source.file_vertices.min(0), [-1, -1, -1], atol=1e-6)
    np.testing.assert_allclose(source.file_vertices.max(0), [1, 7, 1], atol=1e-6)
    assert volume(source.mesh) == pytest.approx(16 * source.scale**3, rel=1e-5)
    assert not any("inside out" in note or "opposite" in note for note in source.notes)


def test_a_skinned_mesh_is_placed_by_its_joint_and_not_by_its_node(tmp_path):
    glb = Gltf()
    glb.mesh(CUBE.vertices, CUBE.faces)
    matrix = np.eye(4)
    matrix[0, 3] = -2.0
    skin = {"joints": [1], "inverseBindMatrices": glb.array([matrix.T.reshape(-1)])}
    nodes = [{"mesh": 0, "skin": 0, "translation": [9, 9, 9]}, {"translation": [2, 0, 0.25]}]
    source = read_mesh(glb.write(tmp_path, nodes=nodes, skins=[skin]), 1.0)
    np.testing.assert_allclose(source.file_vertices, CUBE.vertices + np.array([0, 0, 0.25]), atol=1e-6)


def test_strips_fans_and_lists_without_indices_are_triangles(tmp_path):
    square = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]
    glb = Gltf()
    glb.mesh(square, mode=5)
    glb.mesh(np.array(square)[[0, 1, 3, 2]] + [0, 0, 1], mode=6)
    glb.mesh(np.array(square)[:3] + np.array([0, 0, 2]))
    mesh = read_mesh(glb.write(tmp_path), 1.0).mesh
    np.testing.assert_array_equal(mesh.faces, [[0, 1, 2], [2, 1, 3], [4, 5, 6], [4, 6, 7], [8, 9, 10]])
    # All face glTF's +z, which is the front.
    np.testing.assert_allclose(mesh.normals, np.tile([1.0, 0, 0], (len(mesh.vertices), 1)))


def test_normalized_and_sparse_and_interleaved_numbers_are_read(tmp_path):
    glb = Gltf()
    steps = np.round(CUBE.vertices * 32767).astype(np.int16)
    rows = np.zeros((8, 8), "<i2")
    rows[:, :3] = steps
    view = glb.view(rows.tobytes(), byteStride=16)
    where = {"bufferView": glb.view(np.array([3], "<u2").tobytes()), "componentType": 5123}
    values = {"bufferView": glb.view(np.array([[-32768, 0, 0]], "<i2").tobytes())}
    sparse = {"count": 1, "indices": where, "values": values}
    accessor = {"bufferView": view, "componentType": 5122, "count": 8, "type": "VEC3", "normalized": True}
    glb.document["accessors"].append({**accessor, "sparse": sparse})
    glb.mesh(0, CUBE.faces)
    source = read_mesh(glb.write(tmp_path, extensionsRequired=["KHR_mesh_quantization"]), 1.0)
    expected = CUBE.vertices.copy()
    expected[3] = [-1, 0, 0]
    np.testing.assert_allclose(source.file_vertices, expected, atol=1e-4)


def test_primitives_that_share_vertices_are_joined(tmp_path):
    glb = Gltf()
    first = glb.mesh(CUBE.vertices, CUBE.faces[:6])
    second = glb.mesh(first["attributes"]["POSITION"], CUBE.faces[6:])
    first["material"], second["material"] = glb.material(baseColorFactor=[1, 0, 0, 1]), glb.material()
    source = read_mesh(glb.write(tmp_path), 1.0)
    assert volume(source.mesh) == pytest.approx(1) and len(source.mesh.vertices) == 8
    assert not any("dropped" in note or "grey" in note for note in source.notes)


# Colours


def test_vertex_colours_of_a_glb_are_linear_and_multiplied_by_the_base_colour(tmp_path):
    glb = Gltf()
    colors = glb.array(np.tile([65535, 32768, 0, 65535], (8, 1)), "<u2", normalized=True)
    glb.mesh(CUBE.vertices, CUBE.faces, COLOR_0=colors)["material"] = glb.material(baseColorFactor=[0.5, 0.5, 0.5, 1])
    source = read_mesh(glb.write(tmp_path), 1.0)
    np.testing.assert_allclose(source.mesh.colors[0], linear_to_srgb(np.array([0.5, 0.25, 0.0])), atol=1e-4)
    assert source.notes == ()


def test_a_base_colour_of_a_glb_is_linear(tmp_path):
    glb = Gltf()
    glb.mesh(CUBE.vertices, CUBE.faces)["material"] = glb.material(baseColorFactor=[0.2, 1, 0, 1])
    mesh = read_mesh(glb.write(tmp_path), 1.0).mesh
    np.testing.assert_allclose(mesh.colors, np.tile(linear_to_srgb(np.array([0.2, 1, 0])), (8, 1)), atol=1e-6)
    assert mesh.texture is None


def test_a_base_colour_multiplies_the_texture_in_linear_light(tmp_path):
    positions, faces, _, uv = flat_cube()
    glb = Gltf()
    material = glb.material(png((200, 100, 50)), baseColorFactor=[0.5, 1.0, 0.0, 1.0])
    glb.mesh(positions, faces, TEXCOORD_0=uv)["material"] = material
    mesh = read_mesh(glb.write(tmp_path), 1.0).mesh
    expected = linear_to_srgb(srgb_to_linear(np.array([200, 100, 50]) / 255) * [0.5, 1, 0])
    np.testing.assert_allclose(mesh.texture.image[0, 0] / 255, expected, atol=0.5 / 255)
    np.testing.assert_allclose(mesh.colors, np.tile(mesh.texture.image[0, 0] / 255, (8, 1)), atol=1e-6)


def test_images_of_a_glb_may_be_beside_it_or_in_its_json(tmp_path):
    glb = Gltf()
    positions, faces, _, uv = flat_cube()
    glb.mesh(positions, faces, TEXCOORD_0=uv)["material"] = glb.material(png(RED))
    inline = "data:image/png;base64," + base64.b64encode(png(GREEN)).decode()
    written(tmp_path, "an image.png", png(BLUE))
    for uri, color in [(inline, GREEN), ("an%20image.png", BLUE)]:
        mesh = read_mesh(glb.write(tmp_path, images=[{"uri": uri}]), 1.0).mesh
        assert (mesh.texture.image == color).all()
    source = read_mesh(glb.write(tmp_path, images=[{"uri": "none.png"}]), 1.0)
    assert any("names the texture none.png" in note for note in source.notes)
    np.testing.assert_array_equal(source.mesh.colors, np.ones((8, 3)))


def test_texture_coordinates_and_transforms_of_a_glb_are_those_of_its_material(tmp_path):
    positions, faces, _, uv = flat_cube()
    glb = Gltf()
    glb.mesh(positions, faces, TEXCOORD_0=uv * 0, TEXCOORD_1=uv)["material"] = glb.material(png(RED, BLUE))
    transform = {"offset": [0.5, 0.25], "scale": [0.5, 0.5]}
    reference = glb.document["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"]
    reference |= {"texCoord": 1, "extensions": {"KHR_texture_transform": transform}}
    texture = read_mesh(glb.write(tmp_path), 1.0).mesh.texture
    np.testing.assert_allclose(texture.uv, uv * 0.5 + [0.5, 0.25])
    transform |= {"rotation": np.pi / 2, "scale": [1, 1], "offset": [0, 1]}
    texture = read_mesh(glb.write(tmp_path), 1.0).mesh.texture
    np.testing.assert_allclose(texture.uv, np.stack([uv[:, 1], 1 - uv[:, 0]], axis=1), atol=1e-6)


def test_a_specular_glossiness_material_has_its_diffuse_colour(tmp_path):
    glb = Gltf()
    glb.mesh(CUBE.vertices, CUBE.faces)["material"] = 0
    gloss = {"KHR_materials_pbrSpecularGlossiness": {"diffuseFactor": [1, 0, 0, 1]}}
    source = read_mesh(glb.write(tmp_path, materials=[{"extensions": gloss, "alphaMode": "BLEND"}]), 1.0)
    np.testing.assert_allclose(source.mesh.colors, np.tile([1.0, 0, 0], (8, 1)), atol=1e-6)
    assert source.notes == ("is transparent in places: it is optimised as opaque",)


def test_vertex_colours_of_a_ply_are_srgb(tmp_path):
    cube = CUBE.copy()
    cube.visual.vertex_colors = np.random.default_rng(0).integers(0, 256, (8, 4), dtype=np.uint8)
    source = read_mesh(exported(tmp_path, cube, "cube.ply"), 1.0)
    np.testing.assert_allclose(source.mesh.colors, cube.visual.vertex_colors[:, :3] / 255, atol=1e-6)


def test_a_texture_of_a_ply_is_read(tmp_path):
    written(tmp_path, "a b.png", png(RED, BLUE))
    uv = "property float s\nproperty float t\n"
    header = PLY_HEADER.format("ascii", 3, uv, 1, "").replace(
        "element vertex", "comment TextureFile a b.png\nelement vertex"
    )
    path = written(tmp_path, "a.ply", header + "0 0 0 0 0\n1 0 0 1 0\n0 1 0 0 0.75\n3 0 1 2\n")
    mesh = read_mesh(path, 1.0).mesh
    np.testing.assert_allclose(mesh.texture.uv, [[0, 1], [1, 1], [0, 0.25]])
    np.testing.assert_allclose(mesh.colors, np.array([RED, BLUE, RED]) / 255)
    (tmp_path / "a b.png").unlink()
    assert any("names the texture a b.png" in note for note in read_mesh(path, 1.0).notes)


def test_several_colours_in_one_place_become_their_mean_with_a_note(tmp_path):
    colored = "v 0 0 0 1 0 0\nv 1 0 0 1 0 0\nv 0 1 0 1 0 0\nv 0 0 0 0 0 1\nv 1 0 0 1 0 0\nv 0 -1 0 0 0 1\n"
    source = read_mesh(written(tmp_path, "a.obj", colored + "f 1 2 3\nf 5 4 6\n"), 1.0)
    half = linear_to_srgb(np.array(0.5))
    np.testing.assert_allclose(source.mesh.colors, [[half, 0, half], [1, 0, 0], [1, 0, 0], [0, 0, 1]], atol=1e-6)
    assert "has 1 vertex with several colours: each has their mean" in source.notes


def test_materials_of_an_obj_colour_their_parts(tmp_path):
    written(tmp_path, "a.mtl", "newmtl one\nKd 1 0 0\nnewmtl two\nKd 0 0.25 1\n")
    text = TRIANGLE + "v 0 0 1\nv 1 0 1\nv 0 1 1\nmtllib a.mtl\nusemtl one\nf 1 2 3\nusemtl two\nf 4 5 6\n"
    source = read_mesh(written(tmp_path, "a.obj", text), 1.0)
    np.testing.assert_array_equal(source.mesh.faces, [[0, 1, 2], [3, 4, 5]])  # in the order of the file
    np.testing.assert_allclose(source.mesh.colors, [[1, 0, 0]] * 3 + [[0, 0.25, 1]] * 3)
    assert source.mesh.texture is None and not any("grey" in note for note in source.notes)


def three_parts(materials: str) -> str:
    """An OBJ of triangles at heights 0 to 3, in the materials red, green, red and blue."""
    rows = "".join(f"v 0 0 {z}\nv 1 0 {z}\nv 0 1 {z}\n" for z in range(4))
    names = {1: "red", 4: "green", 7: "red", 10: "blue"}
    faces = [f"usemtl {name}\nf {k} {k + 1} {k + 2}\n" for k, name in names.items()]
    return materials + rows + "".join(faces)


KD = {"red": "newmtl red\nKd 1 0 0\n", "green": "newmtl green\nKd\t0 1 0 # lime\n", "blue": "newmtl blue\nKd 0 0 1\n"}


def test_parts_of_an_obj_keep_the_order_of_their_materials_and_triangles(tmp_path):
    written(tmp_path, "a.mtl", KD["blue"] + KD["red"] + KD["green"])
    source = read_mesh(written(tmp_path, "a.obj", three_parts("mtllib a.mtl\n")), 2.0)
    np.testing.assert_array_equal(source.file_vertices[source.mesh.faces][:, 0, 2], [0, 2, 1, 3])
    assert (source.mesh.colors[::3] == [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).all()


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ("mtllib a.mtl\nmtllib b.mtl\n", ("a.mtl", "b.mtl")),
        ("mtllib a.mtl b.mtl\n", ("a.mtl", "b.mtl")),
        ("mtllib one file.mtl  b.MTL\n", ("one file.mtl", "b.mtl")),
        ("mtllib one file.mtl\nmtllib colours\n", ("one file.mtl", "colours")),
        ("mtllib red green\n", ("red", "green")),
        ("mtllib sub\\a.mtl\n  mtllib\t./b.mtl # colours\n", ("sub/A.mtl", "b.mtl")),
        ("# mtllib none\n#mtllib none.mtl\nmtllib a.mtl\n# usemtl blue\nmtllib b.mtl\n", ("a.mtl", "b.mtl")),
    ],
)
def test_all_material_files_of_an_obj_are_read(tmp_path, lines, names):
    (tmp_path / "sub").mkdir()
    written(tmp_path, names[0], KD["red"])
    written(tmp_path, names[1], KD["blue"] + KD["green"] + "newmtl red\nKd 0 0 0\n")  # the first red is taken
    source = read_mesh(written(tmp_path, "a.obj", three_parts(lines)), 2.0)
    assert (source.mesh.colors[::3] == [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).all()
    assert not any("names the" in note for note in source.notes)


def test_vertex_colours_of_an_obj_may_be_in_8_bits_or_missing_for_some(tmp_path):
    text = "v 0 0 0 255 0 51\nv 1 0 0 0 255 0\nv 0 1 0\nv 0 0 1\nv 1 0 1\nv 0 1 1 1\nf 1 2 3\nf 4 5 6\n"
    source = read_mesh(written(tmp_path, "a.obj", text), 1.0)
    np.testing.assert_allclose(source.mesh.colors, [[1, 0, 0.2], [0, 1, 0]] + [[0.5] * 3] * 4)
    assert "has 1 part without colours: grey" not in source.notes


QUADS = (
    "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nv 0 0 1\nv 1 0 1\nv 1 1 1\nv 0 1 1\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
    "mtllib a.mtl\nusemtl one\nf 1/1 2/2 3/3\nf 1/1 3/3 4/4\nusemtl two\nf 5/1 6/2 7/3\nf 5/1 7/3 8/4\n"
)


def test_several_textures_are_packed_into_one(tmp_path):
    written(tmp_path, "a.mtl", "newmtl one\nKd 0.8 0.8 0.8\nmap_Kd one.png\nnewmtl two\nmap_Kd two.png\n")
    written(tmp_path, "one.png", png(RED, BLUE, size=(16, 16)))
    written(tmp_path, "two.png", png(GREEN, RED, size=(8, 8)))
    source = read_mesh(written(tmp_path, "a.obj", QUADS), 1.0)
    mesh, texture = source.mesh, source.mesh.texture
    size = 2 * (16 + 2 * PADDING)
    assert texture.image.shape == (size, size, 3)
    # Corners of both squares: left, right, right, left.
    expected = [RED, BLUE, BLUE, RED, GREEN, RED, RED, GREEN]
    np.testing.assert_array_equal([shown(mesh, k) for k in range(8)], expected)
    np.testing.assert_allclose(mesh.colors * 255, expected, atol=1e-3)
    assert f"has 2 textures: packed into one texture of {size} x {size} texels" in source.notes
    # Two pixels outside of a cell there is still its own colour.
    column, row = (texture.uv[0] * size).round().astype(int)
    assert tuple(texture.image[row + 1, column - 2]) == RED


def test_an_image_that_two_materials_share_keeps_its_uv_positions(tmp_path):
    written(tmp_path, "a.mtl", "newmtl one\nmap_Kd one.png\nnewmtl two\nmap_Kd -s 1 1 1 one.png\n")
    written(tmp_path, "one.png", png(RED, BLUE, size=(16, 16)))
    texture = read_mesh(written(tmp_path, "a.obj", QUADS), 1.0).mesh.texture
    assert texture.size == 16
    np.testing.assert_array_equal(texture.uv, [[0, 1], [1, 1], [1, 0], [0, 0]] * 2)


def test_parts_without_a_texture_beside_textured_ones_get_a_plain_cell(tmp_path):
    written(tmp_path, "a.mtl", "newmtl one\nmap_Kd one.png\nnewmtl two\nKd 0 1 0.2\n")
    written(tmp_path, "one.png", png(RED, BLUE, size=(16, 16)))
    source = read_mesh(written(tmp_path, "a.obj", QUADS), 1.0)
    expected = [RED, BLUE, BLUE, RED] + [(0, 255, 51)] * 4
    np.testing.assert_array_equal([shown(source.mesh, k) for k in range(8)], expected)
    assert any("has 1 texture and 1 plain colour: packed" in note for note in source.notes)


def test_many_plain_colours_share_a_cell(tmp_path):
    rng = np.random.default_rng(0)
    glb = Gltf()
    glb.mesh(CUBE.vertices, CUBE.faces, TEXCOORD_0=rng.random((8, 2)))["material"] = glb.material(png(RED, BLUE))
    factors = rng.random((50, 3))
    for index, factor in enumerate(factors):
        place = CUBE.vertices * 0.1 + np.array([index, 1, 0])
        glb.mesh(place, CUBE.faces)["material"] = glb.material(baseColorFactor=[*factor, 1])
    mesh = read_mesh(glb.write(tmp_path), 1.0).mesh
    read = [shown(mesh, k) for k in range(8, len(mesh.texture.uv), 8)]
    np.testing.assert_array_equal(read, np.round(linear_to_srgb(factors) * 255))


@pytest.mark.parametrize("reference", ["none.png", "textures\\none.png", "../none.png"])
def test_a_missing_texture_is_named_and_replaced_by_the_material_colour(tmp_path, reference):
    folder = tmp_path / "folder"
    folder.mkdir()
    written(tmp_path, "none.png", png(RED))  # outside of the mesh's folder
    written(folder, "a.mtl", f"newmtl one\nKd 0 1 0\nmap_Kd {reference}\nnewmtl two\nKd 0 1 0\n")
    source = read_mesh(written(folder, "a.obj", QUADS), 1.0)
    assert source.mesh.texture is None
    np.testing.assert_allclose(source.mesh.colors, np.tile([0.0, 1.0, 0.0], (8, 1)))
    assert any(note.startswith("names the texture") and "none.png" in note for note in source.notes)


def test_textures_are_found_in_the_folder_of_the_mesh_and_below(tmp_path):
    (tmp_path / "textures").mkdir()
    written(tmp_path / "textures", "one map.png", png(RED, BLUE))
    written(tmp_path, "two.png", png(RED, BLUE))
    text = "newmtl one\nmap_Kd textures\\one map.png\nnewmtl two\nmap_Kd C:\\users\\me\\two.png\n"
    written(tmp_path, "a.mtl", text)
    source = read_mesh(written(tmp_path, "a.obj", QUADS), 1.0)
    assert any("has 2 textures" in note for note in source.notes)


@pytest.mark.parametrize(
    "reference",
    [
        "-s 1 1 1 one map.png",
        "-o 0.5 0 -blendu on -mm 0 1.5 -clamp off one map.png",
        "-bm 1 -imfchan r ONE Map.PNG",
        "Textures\\One Map.png",
        "C:\\my files\\textures\\one map.png",
        '"one map.png"',
    ],
)
def test_a_texture_is_found_behind_options_and_in_another_case(tmp_path, reference):
    folder = tmp_path / "textures" if reference.startswith("Textures") else tmp_path
    folder.mkdir(exist_ok=True)
    written(folder, "one map.png", png(RED, BLUE))
    written(tmp_path, "a.mtl", f"newmtl one\nMAP_KD {reference}\nnewmtl two\n\tmap_Kd\t{reference}\r\n")
    source = read_mesh(written(tmp_path, "a.obj", QUADS), 1.0)
    assert source.mesh.texture.size == 4 and not any("names the" in note for note in source.notes)


def test_triangles_without_uv_positions_have_the_colour_of_their_textured_material(tmp_path):
    written(tmp_path, "a.mtl", "newmtl one\nKd 0 1 0\nmap_Kd one.png\nnewmtl two\nmap_Kd one.png\n")
    written(tmp_path, "one.png", png(RED, BLUE, size=(16, 16)))
    source = read_mesh(written(tmp_path, "a.obj", QUADS + "usemtl one\nf 1 5 6\nf 1/1 6/2 2\n"), 1.0)
    corners = source.mesh.texture.faces
    assert [shown(source.mesh, vertex).tolist() for vertex in corners[2:4].flat] == [[0, 255, 0]] * 6
    assert [shown(source.mesh, vertex).tolist() for vertex in corners[0]] == [list(RED), list(BLUE), list(BLUE)]
    assert any(note.startswith("has 2 triangles without UV positions in a part") for note in source.notes)
    text = QUADS.replace("usemtl two\n", "").replace("/1", "").replace("/2", "").replace("/3", "").replace("/4", "")
    source = read_mesh(written(tmp_path, "a.obj", text), 1.0)
    assert source.mesh.texture is None and messages.NO_UV in source.notes


@pytest.mark.parametrize("name", ["a.mtl", "materials.txt", "my a.mtl"])
def test_a_missing_material_file_is_named(tmp_path, name):
    source = read_mesh(written(tmp_path, "a.obj", QUADS.replace("a.mtl", name)), 1.0)
    assert any(f"names the material file {name}, which" in note for note in source.notes)
    assert "has no colours: it is grey" in source.notes


def test_each_missing_one_of_several_material_files_is_named(tmp_path):
    written(tmp_path, "c.mtl", "newmtl one\nKd 1 0 0\nnewmtl two\nKd 1 0 0\n")
    source = read_mesh(written(tmp_path, "a.obj", QUADS.replace("a.mtl", "a.mtl my b.mtl c.mtl")), 1.0)
    missing = [note.split(",")[0] for note in source.notes if note.startswith("names")]
    assert missing == ["names the material file a.mtl", "names the material file my b.mtl"]
    assert (source.mesh.colors == [1, 0, 0]).all()


@pytest.mark.parametrize("content", [b"no image", png(RED, size=(64, 64))[:-40]])
def test_a_damaged_texture_is_refused_on_one_line(tmp_path, content):
    written(tmp_path, "a.mtl", "newmtl one\nmap_Kd one.png\nnewmtl two\nmap_Kd one.png\n")
    written(tmp_path, "one.png", content)
    glb = Gltf()
    glb.mesh(CUBE.vertices, CUBE.faces, TEXCOORD_0=np.zeros((8, 2)))["material"] = glb.material(content)
    for path in (written(tmp_path, "a.obj", QUADS), glb.write(tmp_path)):
        name = "one.png" if path.suffix == ".obj" else "0"
        with pytest.raises(InputError, match=rf"source_mesh=.*its texture {name} cannot be read") as caught:
            read_mesh(path, 1.0)
        assert "\n" not in str(caught.value) and " at 0x" not in str(caught.value)


def test_a_texture_that_repeats_becomes_vertex_colours(tmp_path):
    positions, faces, _, uv = flat_cube()
    glb = Gltf()
    glb.mesh(positions, faces, TEXCOORD_0=uv * 0.5 + 1)["material"] = glb.material(png(RED, BLUE, GREEN, RED))
    source = read_mesh(glb.write(tmp_path), 1.0)
    assert source.mesh.texture is None
    assert "has a texture that repeats (UV positions outside [0, 1]): replaced by vertex colours" in source.notes
    np.testing.assert_allclose(np.unique(source.mesh.colors, axis=0)[-1, 1], 0, atol=1e-6)


def test_a_texture_that_is_not_square_is_stretched(tmp_path):
    positions, faces, _, uv = flat_cube()
    glb = Gltf()
    glb.mesh(positions, faces, TEXCOORD_0=uv)["material"] = glb.material(png(RED, BLUE, size=(16, 4)))
    source = read_mesh(glb.write(tmp_path), 1.0)
    image = source.mesh.texture.image
    assert image.shape == (16, 16, 3) and (image[:, :4] == RED).all() and (image[:, 12:] == BLUE).all()
    assert "has a texture of 16 x 4 texels: stretched to 16 x 16" in source.notes
    np.testing.assert_array_equal(source.mesh.texture.uv, uv)


def test_grey_and_16_bit_and_palette_images_become_rgb(tmp_path):
    grey = Image.fromarray(np.full((4, 4), 0x8080, np.uint16))
    for image in (grey, Image.new("L", (4, 4), 128), Image.new("P", (4, 4), 0), Image.new("RGBA", (4, 4), "#80808010")):
        if image.mode == "P":
            image.putpalette([128, 128, 128])
        content = io.BytesIO()
        image.save(content, "PNG")
        assert (decoded_image(content.getvalue()) == 128).all()


def test_vertex_colours_that_are_no_numbers_are_told(tmp_path):
    path = tmp_path / "colours.obj"
    path.write_text(
        "v 0 0 0 nan 0 0\nv 1 0 0 1 0 0\nv 0 1 0 1 0 0\nv 0 0 1 1 0 0\nf 1 2 3\nf 1 3 4\nf 1 4 2\nf 2 4 3\n"
    )
    found = read_mesh(path, 1.0)
    assert any("1 vertex colours that are no numbers" in note for note in found.notes)
    assert np.isfinite(found.mesh.colors).all() and sorted(found.mesh.colors[:, 0].tolist()) == [0, 1, 1, 1]
