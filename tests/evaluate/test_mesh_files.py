"""The checks of exported meshes on good and bad ones; other programs run where they are installed."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from nfsd3d.errors import InputError
from nfsd3d.evaluate import mesh_files
from nfsd3d.evaluate.mesh_files import check_shape, compare_with_views
from nfsd3d.export.formats.read_glb import read_glb
from nfsd3d.export.formats.table import write_mesh
from nfsd3d.export.texture.rasterize import draw
from nfsd3d.generators.base import Rendering
from nfsd3d.generators.mesh.surface import SurfaceMesh, Texture
from nfsd3d.views.cameras import orbit

TOOLS = Path(os.environ.get("NFSD3D_MESH_TOOLS", Path.home() / ".cache" / "nfsd3d" / "mesh-tools"))


@pytest.fixture
def ball() -> SurfaceMesh:
    """A ball, red at the front and darker below, with a texture whose seam runs around it."""
    sphere = trimesh.creation.icosphere(subdivisions=3, radius=0.6)
    vertices, faces = sphere.vertices.astype(np.float32), sphere.faces.astype(np.int32)
    colors = (vertices / 1.4 + 0.5).clip(0, 1).astype(np.float32)
    corner = vertices[faces]
    front = corner[:, :, 0].mean(axis=1) > 0
    uv = corner[..., 1:] / 1.3 + 0.5
    uv = np.where(front[:, None, None], uv * [0.48, 1], uv * [0.48, 1] + [0.52, 0]).reshape(-1, 2)
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, :32] = [200, 40, 40]
    image[:, 32:] = [40, 40, 200]
    source = faces.reshape(-1).astype(np.int32)
    texture = Texture(uv.astype(np.float32), source, np.arange(faces.size, dtype=np.int32).reshape(-1, 3), image)
    return SurfaceMesh(vertices, faces, (vertices / 0.6).astype(np.float32), colors, texture)


class Painted:
    """A generator that renders a mesh."""

    def __init__(self, mesh, opacity=1.0):
        self.mesh, self.opacity = mesh, opacity

    def render_in_chunks(self, camera, options):
        image, shown = draw(self.mesh, camera)
        opacity = torch.from_numpy(shown).float()[None, None] * self.opacity
        color = torch.from_numpy(image).permute(2, 0, 1)[None] * opacity
        color += options.background[:, :, None, None] * (1 - opacity)
        nothing = torch.zeros_like(opacity)
        return Rendering(color, opacity, nothing, nothing, None, None, None, torch.tensor(0.0))


@pytest.mark.parametrize("textured", [True, False])
def test_a_glb_reads_back_as_it_was_written(ball, tmp_path, textured):
    mesh = ball if textured else replace(ball, texture=None)
    write_mesh(mesh, tmp_path / "model.glb", {})
    read = read_glb(tmp_path / "model.glb")
    assert (read.texture is not None) == textured
    for index in range(3):
        camera = orbit(3, 64, 20.0)[index]
        (image, shown), (expected, there) = draw(read, camera), draw(mesh, camera)
        np.testing.assert_array_equal(shown, there)
        np.testing.assert_allclose(image, expected, atol=1e-3)


def test_agreement_with_itself_is_perfect_and_detects_other_colours_and_outlines(ball):
    cameras = orbit(4, 64, 15.0)
    same, image = compare_with_views(Painted(ball), ball, cameras)
    assert same.psnr > 80 and same.psnr_inside > 80 and same.silhouette_iou == same.worst_iou == 1
    assert image.shape == (2 * 64, 4 * 64, 3)
    texture = replace(ball.texture, image=ball.texture.image // 2)
    darker, _ = compare_with_views(Painted(ball), replace(ball, texture=texture), cameras)
    assert darker.psnr_inside < darker.psnr < 25 and darker.silhouette_iou == 1
    smaller, _ = compare_with_views(Painted(ball), replace(ball, vertices=ball.vertices * 0.9), cameras)
    assert smaller.silhouette_iou == pytest.approx(0.8, abs=0.03)
    nothing, _ = compare_with_views(Painted(ball, opacity=0.4), ball, cameras)
    assert nothing.silhouette_iou == 0


def test_shape_checks_merge_vertices_along_seams(ball, tmp_path):
    write_mesh(ball, tmp_path / "model.glb", {})
    found = check_shape(tmp_path / "model.glb")
    assert found["watertight"] and found["consistent"]
    assert found["volume"] == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.02)
    holed = replace(ball, faces=ball.faces[1:], texture=None)
    write_mesh(holed, tmp_path / "holed.glb", {})
    assert not check_shape(tmp_path / "holed.glb")["watertight"]
    inside_out = replace(ball, faces=ball.faces[:, ::-1].copy(), texture=None)
    write_mesh(inside_out, tmp_path / "inside-out.glb", {})
    assert check_shape(tmp_path / "inside-out.glb")["volume"] < 0


def test_runs_of_one_name_have_distinct_image_names():
    runs = [Path("a/run"), Path("b/run"), Path("run-2"), Path("c/run"), Path("other")]
    assert mesh_files.image_names(runs) == ["run", "run-2", "run-2-2", "run-3", "other"]


def test_a_missing_mesh_is_named(tmp_path):
    with pytest.raises(InputError, match=r"model\.glb: no such mesh; write it with"):
        mesh_files.find_glb(tmp_path)


needs_packages = pytest.mark.skipif(
    shutil.which("node") is None or not (TOOLS / "node_modules" / "gltf-validator").is_dir(),
    reason="needs node, and npm packages: python scripts/check_mesh.py --install (NFSD3D_MESH_TOOLS says where)",
)


@needs_packages
@pytest.mark.parametrize("textured", [True, False])
def test_the_validator_reports_no_errors(ball, tmp_path, textured):
    mesh = ball if textured else replace(ball, texture=None)
    write_mesh(mesh, tmp_path / "model.glb", {"prompt": 'a "red" ☃', "seed": 0})
    found = mesh_files.validate_glb(tmp_path / "model.glb", TOOLS)
    assert found == {"errors": 0, "warnings": 0, "infos": 0, "hints": 0, "messages": []}


@needs_packages
def test_the_validator_finds_an_error(ball, tmp_path):
    write_mesh(replace(ball, normals=ball.normals * 2), tmp_path / "model.glb", {})
    assert mesh_files.validate_glb(tmp_path / "model.glb", TOOLS)["errors"] > 0
