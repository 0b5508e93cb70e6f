"""Agreement of meshes with true objects, on meshes of the true objects themselves; and ``scripts/evaluate_mesh.py``."""

import importlib.util
import json
import math
import subprocess
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

from nfsd3d.config.compose import compose
from nfsd3d.config.schema import Config
from nfsd3d.errors import InputError
from nfsd3d.evaluate import score_mesh as module
from nfsd3d.evaluate.classifier.model import Classifier
from nfsd3d.evaluate.ground_truth import composition_of
from nfsd3d.evaluate.mesh_table import differences, mesh_table, pair_runs, summarize
from nfsd3d.evaluate.score_mesh import GLB, MeshScore, ScoredMesh, check_run, mesh_of_run, score_mesh
from nfsd3d.evaluate.true_place import TruePlace, fit_place, psnr, silhouette_iou, true_views
from nfsd3d.export.formats.table import write_mesh
from nfsd3d.export.isosurface import extract_surface
from nfsd3d.export.level_set import LevelSet, sample_density
from nfsd3d.generators.mesh.surface import SurfaceMesh
from nfsd3d.shapes.world import render
from nfsd3d.shapes.world.grammar import COLORS, PATTERNS
from nfsd3d.shapes.world.objects import OBJECTS
from nfsd3d.views.cameras import orbit

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate_mesh.py"
MUG = "a green and yellow checkered mug"
MOVED = TruePlace(0.9, (0.03, -0.02, 0.04))


def exact(prompt: str, place: TruePlace = MOVED, cells: int = 96) -> SurfaceMesh:
    """Marching cubes of the true distance, with the true colours at the vertices."""
    truth = composition_of(prompt)
    shape = OBJECTS[truth.object]

    def to_object(points: torch.Tensor) -> torch.Tensor:
        x, y, z = ((points - points.new_tensor(place.shift)) / place.scale).unbind(-1)
        cosine, sine = math.cos(place.rotation), math.sin(place.rotation)
        return torch.stack([cosine * x + sine * y, cosine * y - sine * x, z], dim=-1)

    def density(points: torch.Tensor) -> torch.Tensor:
        return torch.exp(-20 * shape.distance(to_object(points)))

    surface = extract_surface(LevelSet(density, 1.0, None, 1.0), sample_density(density, 1.0, cells + 1))
    points = to_object(torch.from_numpy(surface.vertices))
    normals, parts = render._normals(shape, points), shape.distances(points).argmin(-1)
    first, second = (
        points.new_tensor(COLORS[name]).expand(points.shape) for name in (truth.color, truth.second or truth.color)
    )
    pattern = torch.full_like(parts, PATTERNS.index(truth.pattern))
    footprint = torch.full_like(points[:, 0], 0.01)
    colors = render._albedo(shape, points, normals, parts, first, second, pattern, footprint)
    return SurfaceMesh(surface.vertices, surface.faces, normals.numpy(), colors.numpy())


@cache
def config_of(prompt: str) -> Config:
    return compose("nfsd", [f"prompt={prompt}", "machine=cpu", "backend=numba", "prior=shapes"])


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier.load()


@pytest.fixture(scope="module")
def mug() -> SurfaceMesh:
    return exact(MUG)


@pytest.fixture(scope="module")
def scored(mug, classifier) -> ScoredMesh:
    return score_mesh(mug, config_of(MUG), classifier, size=64)


# --- meshes ----------------------------------------------------------------------------------------------------------


def test_the_true_object_scores_high_in_everything(scored):
    score = scored.score  # measured: 32.5 dB, 29.1 dB inside, .979, .999, a margin of 8.9
    assert score.psnr_truth > 29 and score.psnr_inside > 26
    assert score.silhouette_iou > 0.96 and score.mesh_iou > 0.99
    assert score.object_right and score.colour_right and score.pattern_right and score.margin > 4
    assert score.place.scale == pytest.approx(0.9, abs=0.01) and score.place.rotation == 0
    np.testing.assert_allclose(score.place.shift, MOVED.shift, atol=0.01)
    assert scored.true.image.shape == scored.mesh.image.shape == (8, 3, 64, 64)


def test_another_colour_lowers_what_is_about_colours_alone(mug, scored, classifier):
    blue = replace(mug, colors=np.roll(mug.colors, 1, axis=1))  # and cyan
    other = score_mesh(blue, config_of(MUG), classifier, size=64).score
    assert other.psnr_inside < scored.score.psnr_inside - 15 and other.psnr_truth < scored.score.psnr_truth - 10
    assert not other.colour_right and other.margin < 0
    assert other.object_right and other.pattern_right
    assert (other.silhouette_iou, other.mesh_iou) == (scored.score.silhouette_iou, scored.score.mesh_iou)


def test_a_smaller_mesh_is_worse_only_in_the_place_of_another(mug, scored, classifier):
    small = replace(mug, vertices=(mug.vertices * 0.8).astype(np.float32))
    own = score_mesh(small, config_of(MUG), classifier, size=64).score
    assert own.place.scale == pytest.approx(0.72, abs=0.01) and own.silhouette_iou > 0.95 and own.psnr_inside > 24
    given = score_mesh(small, config_of(MUG), classifier, scored.score.place, size=64).score
    assert given.place == scored.score.place and given.mesh_iou == own.mesh_iou
    assert given.silhouette_iou < 0.75 and given.psnr_truth < 20 and given.psnr_inside < 15


def test_a_flatter_mesh_has_another_shape(mug, scored, classifier):
    flat = replace(mug, vertices=(mug.vertices * [1, 1, 0.6]).astype(np.float32))
    score = score_mesh(flat, config_of(MUG), classifier, size=64).score
    assert score.mesh_iou < 0.7 and score.silhouette_iou < 0.9 and score.psnr_truth < scored.score.psnr_truth - 8


@pytest.mark.parametrize(
    ("prompt", "degrees", "tolerance"),
    [
        ("a red and white dotted mushroom", 203, 2),
        ("a red and white checkered cube", 107, 1),
    ],
)
def test_the_heading_of_an_object_without_a_front_is_that_of_its_pattern(prompt, degrees, tolerance, monkeypatch):
    monkeypatch.setattr("nfsd3d.evaluate.true_place.HEADING_SIZE", 32)
    mesh = exact(prompt, TruePlace(0.95, (0.0, 0.02, -0.03), math.radians(degrees)), cells=56)
    place, iou = fit_place(mesh, composition_of(prompt), config_of(prompt))
    assert math.degrees(place.rotation) % 360 == pytest.approx(degrees, abs=tolerance)
    assert iou > 0.98


def test_an_open_mesh_is_an_input_error(mug):
    holed = replace(mug, faces=mug.faces[200:])
    with pytest.raises(InputError, match="not closed"):
        fit_place(holed, composition_of(MUG), config_of(MUG))


def test_the_views_of_the_truth_are_the_unlit_ones_of_the_renderer():
    truth, cameras = composition_of("a purple and green striped cube"), orbit(2, 24)
    gray = torch.full((2, 3, 24, 24), 0.5)
    expected = render.render_views([truth] * 2, cameras, gray, ambient=1.0, supersample=4)
    views = true_views(truth, TruePlace(), cameras)
    torch.testing.assert_close(views.image, expected.image, atol=1e-4, rtol=0)
    torch.testing.assert_close(views.coverage, expected.mask)
    # A quarter turn of the object is a quarter turn of the cameras, the other way round.
    turned = true_views(truth, TruePlace(rotation=math.pi / 2), orbit(2, 24, start_deg=90.0))
    torch.testing.assert_close(turned.image, views.image, atol=0.02, rtol=0)


def test_numbers_of_views_are_means_over_views():
    images = torch.zeros(2, 3, 4, 4)
    others = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.01)])
    assert psnr(images, others) == pytest.approx(30)
    where = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    assert math.isnan(psnr(images, others, where))
    where[1, 0, 0] = True  # the view without pixels is left out
    assert psnr(images, others, where) == pytest.approx(40)
    one, two = torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    one[:, :, :2], two[0, :, :2], two[1, :, 1:3] = 0.6, 0.9, 0.9
    assert silhouette_iou(one, two) == pytest.approx((1 + 1 / 3) / 2)


# --- sets of runs ----------------------------------------------------------------------------------------------------


def made(prompt: str, seed: int, psnr: float, inside: float = 10.0, right: bool = True) -> MeshScore:
    return MeshScore(prompt, seed, psnr, inside, 0.9, 0.8, right, right, right, 3.0, 100, TruePlace())


def test_a_row_has_means_over_prompts_and_their_intervals():
    scores = [made("a", 0, 10.0), made("a", 1, 14.0, inside=math.nan), made("b", 0, 20.0, math.nan, right=False)]
    row = summarize(scores)
    assert row["psnr_truth"].mean == pytest.approx(16) and row["psnr_truth"].count == 2
    assert (row["psnr_truth"].low, row["psnr_truth"].high) == (12, 20)
    assert row["psnr_inside"].mean == 10 and row["psnr_inside"].count == 1
    assert row["object_right"].mean == 0.5 and row["margin"].low == row["margin"].high == 3


def test_differences_are_paired():
    ours = [made(prompt, seed, 10 * number + 2 + seed) for number, prompt in enumerate("abc") for seed in (0, 1)]
    theirs = [made(prompt, seed, 10 * number) for number, prompt in enumerate("abc") for seed in (0, 1)]
    found = differences(list(zip(ours, theirs, strict=True)))["psnr_truth"]
    # The prompts differ by 10 dB, which pairing removes.
    assert found.mean == found.low == found.high == pytest.approx(2.5) and found.count == 3
    lines = mesh_table({"runs": ours, "against": theirs}, list(zip(ours, theirs, strict=True))).splitlines()
    assert len(lines) == 5 and lines[2].startswith("| runs | 6 | 3 | 12.50 [2.50, 22.50] |")
    assert lines[4].startswith("| difference | 6 | 3 | +2.50 [+2.50, +2.50] | +0.00 [+0.00, +0.00] |")
    assert "| +0 % [+0, +0] |" in lines[4] and "| 0.900 [0.900, 0.900] |" in lines[3]


def run_of(folder: Path, prompt: str = MUG, seed: int = 0, mesh: SurfaceMesh | None = None) -> Path:
    """A run directory without a checkpoint, and with ``mesh`` as its mesh."""
    (folder / "mesh").mkdir(parents=True)
    (folder / "config.yaml").write_text(replace(config_of(prompt), seed=seed).to_yaml(), encoding="utf-8")
    if mesh is not None:
        write_mesh(mesh, folder / GLB, {})
    return folder


def test_runs_are_paired_by_prompt_and_seed(tmp_path):
    first, second = run_of(tmp_path / "1"), run_of(tmp_path / "2", seed=1)
    others = [run_of(tmp_path / "b", seed=1), run_of(tmp_path / "a")]
    assert pair_runs([first, second], others) == [(first, others[1]), (second, others[0])]
    with pytest.raises(InputError, match=r"2: no --against has its prompt and seed, 'a green .* mug' and 1"):
        pair_runs([first, second], others[1:])
    with pytest.raises(InputError, match="b: no RUN_DIR has its prompt and seed"):
        pair_runs([first], others)
    with pytest.raises(InputError, match=r"a: has the prompt and seed of .*1; leave one"):
        pair_runs([first, others[1]], others)


def test_what_cannot_be_scored_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no such run directory"):
        check_run(tmp_path / "none")
    with pytest.raises(InputError, match="no composition of the world of shapes"):
        check_run(run_of(tmp_path / "corgi", "a corgi"))
    images = compose("nfsd", ["prompt=a red cube", "machine=cpu", "prior=shapes", "generator=latent"])
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "config.yaml").write_text(images.to_yaml(), encoding="utf-8")
    with pytest.raises(InputError, match="generator=latent, which has no mesh"):
        check_run(tmp_path / "images")
    run = run_of(tmp_path / "run")
    with pytest.raises(InputError, match=r"other/model\.glb: no such mesh"):
        mesh_of_run(run, Path("other/model.glb"))
    with pytest.raises(InputError, match="checkpoint"):
        mesh_of_run(run)


def test_a_missing_mesh_is_exported_once_and_kept(mug, tmp_path, monkeypatch):
    exported = []

    class Run:
        def export(self, path):
            exported.append(path)
            if len(exported) == 1:
                raise PermissionError(13, "Permission denied")
            write_mesh(mug, path, {})

    monkeypatch.setattr(module, "load_run", lambda directory: Run())
    run = run_of(tmp_path / "run")
    with pytest.raises(InputError, match=r"model\.glb: cannot be written \(Permission denied\)"):
        mesh_of_run(run)
    assert len(mesh_of_run(run).faces) == len(mesh_of_run(run).faces) == len(mug.faces)
    assert exported == [run / GLB] * 2


# --- the script ------------------------------------------------------------------------------------------------------


@pytest.fixture
def script(monkeypatch):
    """The module ``scripts/evaluate_mesh.py``."""
    spec = importlib.util.spec_from_file_location("evaluate_mesh", SCRIPT)
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "evaluate_mesh", loaded)
    spec.loader.exec_module(loaded)
    return loaded


def test_the_script_compares_two_sets_and_goes_on_after_a_mesh_that_cannot_be_scored(
    mug, tmp_path, script, capsys, monkeypatch
):
    monkeypatch.setattr(module, "score_mesh", partial(score_mesh, size=32))
    ours = [run_of(tmp_path / "ours", mesh=mug), run_of(tmp_path / "empty", seed=1)]
    dark = replace(mug, colors=mug.colors * np.float32(0.5))
    theirs = [run_of(tmp_path / "theirs", mesh=dark), run_of(tmp_path / "other", seed=1, mesh=dark)]
    sheet, numbers = tmp_path / "new" / "sheet.png", tmp_path / "new" / "numbers.json"
    options = [*map(str, ours), "--against", *map(str, theirs), "--sheet", str(sheet), "--json", str(numbers)]
    assert script.main(options) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith(f"[1/2] {ours[0]}: PSNR ") and f"[1/2] {theirs[0]}: PSNR " in captured.out
    assert captured.err.startswith(f"[2/2] not scored: {ours[1]}: ") and captured.err.count("\n") == 1
    assert "| difference | 1 | 1 | +" in captured.out and "not scored: 1 of 2" in captured.out
    assert imageio.imread(sheet).shape == (34 + 34, 110 + 6 * 34, 3)
    found = json.loads(numbers.read_text())
    assert found["runs"].keys() == {str(ours[0])} and found["not_scored"].keys() == {str(ours[1])}
    assert found["differences"]["psnr_truth"]["mean"] > 5 and found["differences"]["mesh_iou"]["mean"] == 0
    assert found["means"]["against"]["mesh_iou"]["count"] == 1


def test_wrong_input_is_one_line(tmp_path, script):
    run = run_of(tmp_path / "run")
    result = subprocess.run([sys.executable, SCRIPT, tmp_path / "none"], capture_output=True, text=True, check=False)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    for arguments, message in [
        ([], "RUN_DIR"),
        ([run, "--workers", "0"], "at least 1"),
        ([run, "--one-place"], "--one-place: is for two meshes"),
        ([run, "--against", run_of(tmp_path / "later", seed=3)], "has its prompt and seed"),
        ([run, "--sheet", tmp_path], "cannot be written"),
    ]:
        with pytest.raises(InputError, match=message):
            script.main([*map(str, arguments)])


def test_two_meshes_of_one_run_can_be_compared(tmp_path, script):
    run = run_of(tmp_path / "run")
    jobs = script.jobs_of(script.parser().parse_args([str(run), "--against-mesh", "old/model.glb", "--one-place"]))
    assert [[str(mesh) for mesh in job.meshes] for job in jobs] == [[str(run), str(run / "old/model.glb")]]
    assert jobs[0].one_place
