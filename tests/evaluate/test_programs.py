"""What other programs show of a mesh: the comparison on known faults, and the programs that are installed."""

import os
import shutil
import stat
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nfsd3d.errors import InputError
from nfsd3d.evaluate.programs import blender, browser, converters
from nfsd3d.evaluate.programs.stage import TO_STAGE, drawing, look, rotations
from nfsd3d.evaluate.programs.table import Opened, Programs, mesh_files_in, open_all, sheet, table_of
from nfsd3d.export.formats.table import write_mesh
from nfsd3d.generators.mesh.surface import SurfaceMesh, Texture
from nfsd3d.settings.export import Placement

TOOLS = Path(os.environ.get("NFSD3D_MESH_TOOLS", Path.home() / ".cache" / "nfsd3d" / "mesh-tools"))
BLENDER = os.environ.get("NFSD3D_BLENDER_PYTHON")
PLACED = Placement(size_mm=60, origin="floor")


@pytest.fixture(scope="module")
def steps() -> SurfaceMesh:
    """Three boxes: green and low in front, red and high behind it, blue to the left. All axes differ."""
    boxes = [
        ((0.0, 0.0, 0.0), (0.3, 0.3, 0.9), (200, 40, 40)),
        ((0.3, 0.0, 0.0), (0.6, 0.3, 0.3), (40, 160, 40)),
        ((0.0, 0.3, 0.0), (0.3, 0.5, 0.5), (40, 40, 200)),
    ]
    corner = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float32)
    side = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])
    triangle = np.concatenate([side[:, [0, 1, 2]], side[:, [0, 2, 3]]])
    vertices = np.concatenate([np.array(low) + corner * (np.array(high) - low) for low, high, _ in boxes])
    faces = np.concatenate([triangle + 8 * number for number in range(3)]).astype(np.int32)
    colors = np.repeat(np.array([color for *_, color in boxes], np.float32) / 255, 8, axis=0)
    image = np.zeros((64, 64, 3), np.uint8)
    for number, (*_, color) in enumerate(boxes):
        image[:, 20 * number : 20 * (number + 1)] = color
    uv = np.stack([(np.repeat(np.arange(3), 8) * 20 + 10) / 64, np.full(24, 0.5)], axis=1).astype(np.float32)
    texture = Texture(uv, np.arange(24, dtype=np.int32), faces, image)
    middle = vertices.mean(0)
    away = vertices - np.repeat(vertices.reshape(3, 8, 3).mean(1), 8, axis=0)
    normals = (away / np.linalg.norm(away, axis=1, keepdims=True)).astype(np.float32)
    return SurfaceMesh((vertices - middle).astype(np.float32), faces, normals, colors, texture)


@pytest.fixture(scope="module")
def folder(steps, tmp_path_factory) -> Path:
    """The steps as files, 60 mm high and on the floor."""
    folder = tmp_path_factory.mktemp("meshes")
    for suffix in ("glb", "obj", "ply", "stl"):
        write_mesh(steps, folder / f"model.{suffix}", {"prompt": "steps", "seed": 0}, PLACED)
    return folder


def test_a_picture_of_the_same_mesh_is_right(steps):
    seen = look(drawing(steps), steps)
    assert (seen.up, seen.front) == ("+y", "+z")
    assert seen.color_error < 0.5 and seen.silhouette_iou == 1
    assert seen.pictures.shape == (256, 512, 3)


def test_size_and_place_do_not_matter(steps):
    elsewhere = replace(steps, vertices=steps.vertices * 60 + 7)
    assert look(drawing(elsewhere), steps).silhouette_iou > 0.999


@pytest.mark.parametrize("number", range(24))
def test_a_picture_says_which_way_the_mesh_is_turned(steps, number):
    turn = rotations()[number]
    turned = replace(steps, vertices=steps.vertices @ (TO_STAGE.T @ turn @ TO_STAGE).T)
    seen = look(drawing(turned), steps)
    up, front = turn @ (0, 1, 0), turn @ (0, 0, 1)
    assert np.array_equal(_direction(seen.up), up) and np.array_equal(_direction(seen.front), front)
    assert seen.silhouette_iou > 0.999


def test_outlines_alone_tell_the_way_up_where_there_are_no_colours(steps):
    turn = rotations()[5]
    turned = replace(steps, vertices=steps.vertices @ (TO_STAGE.T @ turn @ TO_STAGE).T)
    picture = drawing(turned)
    picture[..., :3] = 255
    seen = look(picture, steps, colored=False)
    assert np.array_equal(_direction(seen.up), turn @ (0, 1, 0))


def test_linear_colours_that_are_taken_as_srgb_are_seen(steps):
    picture = drawing(steps)
    picture[..., :3] = (255 * (picture[..., :3] / 255.0) ** (1 / 2.2)).round()
    seen = look(picture, steps)
    assert (seen.up, seen.color_error > 20) == ("+y", True)


def test_an_empty_picture_is_no_agreement(steps):
    seen = look(np.zeros((256, 256, 4), np.uint8), steps)
    assert (seen.color_error, seen.silhouette_iou) == (255, 0)


def test_the_rotations_are_all_of_them_and_begin_with_none():
    assert len({tuple(matrix.ravel().tolist()) for matrix in rotations()}) == 24
    assert np.array_equal(rotations()[0], np.eye(3))
    assert all(np.linalg.det(matrix) == pytest.approx(1) for matrix in rotations())


@pytest.mark.parametrize(("axis", "expected"), [("+y", "+z"), ("+z", "-y"), ("-z", "+y"), ("+x", "+x"), ("-x", "-x")])
def test_the_stage_s_axes_in_blender(axis, expected):
    assert blender.axis_in_blender(axis) == expected


def test_trimesh_opens_the_files(steps, folder):
    rows = {row.file: row for row, _ in open_all(folder, steps, Programs())}
    assert {row.program.split()[0] for row in rows.values()} == {"trimesh"}
    assert rows["model.glb"].right and rows["model.obj"].right
    assert rows["model.glb"].size == pytest.approx([0.0333, 0.06, 0.04], abs=1e-4)
    assert rows["model.stl"].size == pytest.approx([40, 33.333, 60], abs=1e-2)
    assert rows["model.stl"].color_error is None
    assert (rows["model.stl"].up, rows["model.stl"].upright) == ("+z", False)  # it writes a z-up file as it is


def test_a_file_that_a_program_cannot_open_is_a_row_and_the_others_go_on(steps, folder, tmp_path):
    for file in folder.iterdir():
        shutil.copy(file, tmp_path)
    (tmp_path / "model-cut.glb").write_bytes((folder / "model.glb").read_bytes()[:100])
    rows = [row for row, _ in open_all(tmp_path, steps, Programs())]
    cut = next(row for row in rows if row.file == "model-cut.glb")
    assert cut.failure is not None and not cut.right and len(rows) == 5
    assert f"| model-cut.glb | trimesh | | | | | {cut.failure} |" in table_of(rows)


def test_meshes_are_found_by_their_names(folder, tmp_path):
    assert [path.name for path in mesh_files_in(folder)] == ["model.glb", "model.obj", "model.ply", "model.stl"]
    for name in ("model-web.glb", "model-lod1.glb", "other.glb", "model.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in mesh_files_in(tmp_path)] == ["model-web.glb"]
    with pytest.raises(InputError, match=r"no mesh is there; write some with `nfsd3d export"):
        mesh_files_in(tmp_path / "nowhere")


def test_the_table_and_the_sheet_show_every_row(steps):
    picture = look(drawing(steps), steps).pictures
    rows = [
        (Opened("model.glb", "A 1", [0.06, 0.05, 0.04], "+y", "+z", True, 0.6, 0.999), picture),
        (Opened("model.ply", "B 2", [40, 60, 50], "+z", "+x", False, 59.1, 1.0, "brings no material"), picture),
        (Opened("model.ply", "C 3", [40, 60, 50]), None),
    ]
    lines = table_of([row for row, _ in rows]).splitlines()
    assert lines[2] == "| model.glb | A 1 | 0.06 x 0.05 x 0.04 | +y, +z | 0.6 | 0.999 |  |"
    assert lines[3] == "| model.ply | B 2 | 40 x 60 x 50 | +z, +x (not upright) | 59.1 | 1.000 | brings no material |"
    assert lines[4] == "| model.ply | C 3 | 40 x 60 x 50 |  |  |  |  |"
    height, width, _ = sheet(rows).shape
    assert height > 2 * 256 and width > 2 * 512
    assert [row.right for row, _ in rows] == [True, False, True]


def test_a_program_that_is_not_there_or_fails_is_an_error(tmp_path, folder):
    with pytest.raises(InputError, match=r"no-such-browser.*is it installed"):
        browser.screenshot(tmp_path / "page.html", tmp_path / "page.png", "no-such-browser", (10, 10))
    with pytest.raises(InputError, match=r"no-such-browser.*is it installed"):
        browser._visited("http://127.0.0.1:1/", browser._Result(), "no-such-browser")
    with pytest.raises(InputError, match="bpy"):
        blender.open_in_blender(folder / "model.glb", tmp_path / "none.png", Path(sys.executable))
    with pytest.raises(InputError, match="no-such-assimp"):
        converters.open_in_assimp(folder / "model.glb", Path("no-such-assimp"))
    with pytest.raises(InputError, match=r"model-viewer: no such package; add --install"):
        browser.open_in_model_viewer(folder / "model.glb", tmp_path / "viewer.png", tmp_path, "chromium")


def test_a_browser_that_ends_is_told_at_once(folder, tmp_path):
    for name in ("three", "@google/model-viewer"):
        package = tmp_path / "node_modules" / name / "package.json"
        package.parent.mkdir(parents=True)
        package.write_text('{"version": "0"}')
    with pytest.raises(InputError, match="ended before the page did"):
        browser.open_in_three(folder / "model.glb", tmp_path / "three.png", tmp_path, "true")
    with pytest.raises(InputError, match="said nothing of the file"):
        blender.open_in_blender(folder / "model.glb", tmp_path / "none.png", Path("true"))


def test_what_a_damaged_file_makes_of_a_program_is_a_row(steps, tmp_path):
    (tmp_path / "model.stl").write_text("solid a\nendsolid a\n")
    (tmp_path / "model a#b.obj").write_text("v 0 0 0 | no mesh\n")
    rows = [row for row, _ in open_all(tmp_path, steps, Programs())]
    assert [row.failure is None for row in rows] == [False, False]
    assert len(table_of(rows).splitlines()) == 4


def test_a_page_that_does_not_end_is_an_error(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(browser, "SECONDS", 0.2)
    (tmp_path / "node_modules" / "three").mkdir(parents=True)
    (tmp_path / "node_modules" / "three" / "package.json").write_text("{}")
    silent = tmp_path / "browser"
    silent.write_text("#!/bin/sh\nexec sleep 60\n")
    silent.chmod(silent.stat().st_mode | stat.S_IEXEC)
    with pytest.raises(InputError, match=r"the page did not end in 0\.2 s"):
        browser.open_in_three(folder / "model.glb", tmp_path / "three.png", tmp_path, str(silent))


def test_the_server_gives_away_its_two_folders_alone(tmp_path):
    import urllib.error
    import urllib.request

    mesh, modules = tmp_path / "mesh files", tmp_path / "packages"
    mesh.mkdir(), modules.mkdir()
    (mesh / "a b.glb").write_bytes(b"glTF")
    (modules / "three.js").write_text("export {}")
    (tmp_path / "secret").write_text("not for pages")
    with browser._served("<p>page</p>", mesh, modules) as (address, result):

        def get(path: str) -> bytes:
            with urllib.request.urlopen(address + path) as answer:
                return answer.read()

        assert (get(""), get("mesh/a%20b.glb"), get("modules/three.js")) == (b"<p>page</p>", b"glTF", b"export {}")
        for path in ("secret", "mesh/../secret", "mesh/%2e%2e/secret", "other/secret", "mesh//secret"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(path)
        urllib.request.urlopen(urllib.request.Request(f"{address}result", b'{"size": [1, 2, 3]}'))
        assert result.there.is_set() and result.values == {"size": [1, 2, 3]}


needs_browser = pytest.mark.skipif(
    shutil.which("chromium") is None or not (TOOLS / "node_modules" / "three").is_dir(),
    reason="needs Chromium, and npm packages: nfsd3d check-mesh --install (NFSD3D_MESH_TOOLS says where)",
)
needs_viewer = pytest.mark.skipif(
    shutil.which("chromium") is None or not (TOOLS / "node_modules" / "@google").is_dir(),
    reason="needs Chromium, and npm packages: nfsd3d check-mesh --install (NFSD3D_MESH_TOOLS says where)",
)
needs_blender = pytest.mark.skipif(BLENDER is None, reason="NFSD3D_BLENDER_PYTHON names no Python with bpy")
needs_assimp = pytest.mark.skipif(shutil.which("assimp") is None, reason="needs assimp")
needs_slicer = pytest.mark.skipif(shutil.which("prusa-slicer") is None, reason="needs PrusaSlicer")


def opened(folder: Path, steps: SurfaceMesh, programs: Programs, name: str) -> dict[str, Opened]:
    rows = [row for row, _ in open_all(folder, steps, programs) if row.program.startswith(name)]
    return {row.file: row for row in rows}


@needs_browser
def test_three_js_shows_what_the_files_say(steps, folder):
    rows = opened(folder, steps, Programs(chromium="chromium", tools=TOOLS), "three.js")
    assert rows["model.glb"].right and rows["model.obj"].right
    assert rows["model.glb"].size == pytest.approx([0.0333, 0.06, 0.04], abs=1e-4)
    assert (rows["model.ply"].up, rows["model.ply"].front) == ("+z", "+x")
    assert rows["model.ply"].color_error < 3


@needs_viewer
def test_model_viewer_opens_a_glb(steps, folder):
    rows = opened(folder, steps, Programs(chromium="chromium", tools=TOOLS), "model-viewer")
    assert rows["model.glb"].right and rows["model.glb"].size == pytest.approx([0.0333, 0.06, 0.04], abs=1e-4)


@needs_blender
def test_blender_shows_what_the_files_say(steps, folder):
    rows = opened(folder, steps, Programs(blender=Path(BLENDER)), "Blender")
    assert all(row.right for row in rows.values())
    assert rows["model.glb"].size == pytest.approx([0.0333, 0.04, 0.06], abs=1e-4)
    assert (rows["model.ply"].up, rows["model.ply"].front) == ("+z", "+x")
    assert rows["model.ply"].note == "brings no material"


@needs_assimp
def test_assimp_converts_the_files(steps, folder):
    rows = opened(folder, steps, Programs(assimp=Path("assimp")), "assimp")
    assert rows["model.glb"].right
    assert rows["model.stl"].size == pytest.approx([40, 33.333, 60], abs=1e-2)


@needs_slicer
def test_the_slicer_measures_millimetres(steps, folder):
    rows = opened(folder, steps, Programs(slicer=Path("prusa-slicer")), "PrusaSlicer")
    assert rows["model.stl"].size == pytest.approx([40, 33.333, 60], abs=0.05)


def _direction(axis: str) -> np.ndarray:
    direction = np.zeros(3)
    direction["xyz".index(axis[1])] = 1 if axis[0] == "+" else -1
    return direction
