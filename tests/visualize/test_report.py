"""The report page: complete, self-contained, safe."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import trimesh

from nfsd3d.export.formats.glb import glb_bytes
from nfsd3d.generators.mesh.surface import SurfaceMesh
from nfsd3d.visualize import report
from nfsd3d.visualize.charts import line_chart, scatter_chart
from nfsd3d.visualize.comparison import render_comparison
from nfsd3d.visualize.report import render_report, write_report


@pytest.fixture
def mesh() -> SurfaceMesh:
    sphere = trimesh.creation.icosphere(subdivisions=2, radius=0.5)
    vertices = sphere.vertices.astype(np.float32)
    return SurfaceMesh(vertices, sphere.faces.astype(np.int32), vertices * 2, np.full_like(vertices, 0.5))


@pytest.fixture
def run_dir(tmp_path) -> Path:
    (tmp_path / "turntable.mp4").write_bytes(b"a video")
    imageio.imwrite(tmp_path / "turntable.png", np.zeros((32, 64, 3), np.uint8))
    lines = [{"step": step, "opacity": 0.5 + step / 100, "grad_norm": 10.0 / (step + 1)} for step in range(20)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "summary.json").write_text(
        json.dumps({"status": "done", "steps": 20, "steps_planned": 20, "seconds": 12.3})
    )
    return tmp_path


class Tags(HTMLParser):
    """Collects elements, and reports those that are closed in the wrong order."""

    VOID = frozenset({"meta", "img", "input"})

    def __init__(self, text):
        super().__init__()
        self.seen, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_holds_all_parts(configure, run_dir, mesh):
    write_report(run_dir, configure(prompt='<b>"red" & round</b>', run_dir=run_dir), mesh)
    text = (run_dir / "report.html").read_text()
    tags = Tags(text).seen
    names = [name for name, _ in tags]
    for name in ("video", "img", "canvas", "svg", "details"):
        assert name in names
    assert "<h1>&lt;b&gt;&quot;red&quot; &amp; round&lt;/b&gt;</h1>" in text
    assert "<b>" not in text
    assert "guidance_scale: 7.5" in text and "20 of 20 steps in 12 s" in text
    assert text.count("<svg") == 2  # of the metrics that were logged


def test_the_page_has_no_external_references(configure, run_dir, mesh):
    text = render_report(run_dir, configure(), mesh)
    for _, attributes in Tags(text).seen:
        assert attributes.get("src", "data:").startswith("data:")
        assert "href" not in attributes or (run_dir / attributes["href"]).is_file()
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(|import\s*\(|fetch\(|XMLHttpRequest", text)


def test_sections_without_data_are_omitted(configure, tmp_path):
    names = [name for name, _ in Tags(render_report(tmp_path, configure(), None)).seen]
    assert not {"video", "img", "canvas", "svg"} & set(names)


def test_a_large_mesh_is_simplified_for_the_page(configure, run_dir, mesh, monkeypatch):
    whole = render_report(run_dir, configure(), mesh)
    monkeypatch.setattr(report, "MAX_FACES", 100)
    assert render_report(run_dir, configure(), mesh) == whole  # its file is small
    monkeypatch.setattr(report, "MAX_MESH_BYTES", 5000)
    small = render_report(run_dir, configure(), mesh)
    assert len(small) < len(whole) - 4000
    assert "320 triangles, vertex colours (100 with vertex colours shown here)" in small


def test_a_large_video_is_referred_to_and_not_embedded(configure, run_dir, monkeypatch):
    monkeypatch.setattr(report, "MAX_VIDEO_BYTES", 3)
    text = render_report(run_dir, configure(), None)
    assert "<video" not in text and "turntable.mp4" in text


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_viewer_reads_what_the_exporter_writes(mesh, tmp_path):
    """The page's own parser, run in node, finds the arrays of the page's own mesh."""
    (tmp_path / "model.glb").write_bytes(glb_bytes(mesh, {"prompt": "a ☃"}))
    script = (Path(report.__file__).parent / "assets" / "viewer.js").read_text()
    check = f"""
        global.document = {{ getElementById: () => null }};
        {script}
        const file = require("fs").readFileSync({json.dumps(str(tmp_path / "model.glb"))});
        const model = parseGlb(new Uint8Array(file));
        console.log(JSON.stringify({{
          positions: Array.from(model.positions), indices: Array.from(model.indices), color: model.colors[0],
        }}));"""
    output = subprocess.run(["node", "-e", check], capture_output=True, text=True, check=True).stdout
    model = json.loads(output)
    np.testing.assert_allclose(np.reshape(model["positions"], (-1, 3)), mesh.vertices[:, [1, 2, 0]], atol=1e-6)
    np.testing.assert_array_equal(np.reshape(model["indices"], (-1, 3)), mesh.faces)
    assert model["color"] == pytest.approx(0.2140411, abs=1e-5)


def points_of(svg):
    return [
        [tuple(map(float, pair.split(","))) for pair in line.split()] for line in re.findall(r'points="([^"]+)"', svg)
    ]


def test_a_chart_draws_its_points_in_proportion():
    ((a, b, c),) = points_of(line_chart("growth", {"": [(0, 1.0), (10, 2.0), (20, 5.0)]}))
    assert b[0] - a[0] == pytest.approx(c[0] - b[0], abs=0.2)
    assert (a[1] - b[1]) * 3 == pytest.approx(b[1] - c[1], abs=0.5)  # up is towards smaller y


def test_a_scatter_plot_draws_its_points_in_proportion():
    chart = scatter_chart("iou <over> scale", [(10.0, 2.0), (0.0, 1.0), (5.0, 5.0)])
    (b, a, c) = [tuple(map(float, found)) for found in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', chart)]
    assert a[0] < c[0] < b[0] and a[1] > b[1] > c[1]
    assert c[0] - a[0] == pytest.approx(b[0] - c[0], abs=0.2) and a[1] - c[1] == pytest.approx(
        4 * (a[1] - b[1]), abs=0.5
    )
    assert "iou &lt;over&gt; scale" in chart
    assert scatter_chart("none", []) == "" and scatter_chart("one", [(3.0, 3.0)]).count("<circle") == 1


def test_a_logarithmic_chart_shows_factors_and_omits_zero():
    ((a, b, c),) = points_of(line_chart("decay", {"": [(0, 0.0), (1, 100.0), (2, 10.0), (3, 1.0)]}, logarithmic=True))
    assert b[1] - a[1] == pytest.approx(c[1] - b[1], abs=0.2)
    assert line_chart("nothing", {"": [(0, 0.0)]}, logarithmic=True) == ""


def test_a_single_point_is_a_dot():
    assert "<circle" in line_chart("loss", {"": [(10, 2.0)]}) and "<circle" not in line_chart(
        "loss", {"": [(10, 2.0), (20, 1.0)]}
    )


def test_a_constant_and_a_single_point_are_charts_too():
    assert len(points_of(line_chart("flat", {"": [(0, 0.0), (1, 0.0)]}))[0]) == 2
    assert len(points_of(line_chart("one", {"<&>": [(3, 2.0)], "b": [(3, 1.0)]}))) == 2
    assert "&lt;&amp;&gt;" in line_chart("one", {"<&>": [(3, 2.0)], "b": [(3, 1.0)]})


def jpeg(address):
    assert address.startswith("data:image/jpeg;base64,")
    return imageio.imread(base64.b64decode(address.partition(",")[2]))


def test_files_of_the_run_are_links(configure, run_dir):
    (run_dir / "mesh").mkdir()
    (run_dir / "mesh" / "model.obj").write_bytes(b"o" * 3 * 2**20)
    text = render_report(run_dir, configure(), None)
    links = [attributes["href"] for name, attributes in Tags(text).seen if name == "a"]
    assert links == ["mesh/model.obj", "turntable.mp4", "turntable.png", "summary.json", "metrics.jsonl"]
    assert "3.0 MB" in text


def test_previews_are_behind_a_slider(configure, run_dir):
    folder = run_dir / "previews"
    folder.mkdir()
    for step in range(1, 41):
        imageio.imwrite(folder / f"step-{step:06d}.png", np.full((24, 48, 3), 5 * step, np.uint8))
    text = render_report(run_dir, configure(), None)
    (slider,) = [attributes for name, attributes in Tags(text).seen if attributes.get("id") == "scrubber"]
    data = json.loads(re.search(r'id="scrubber-data">(.*?)</script>', text)[1])
    assert len(data["steps"]) == len(data["images"]) == report.MAX_PREVIEWS == int(slider["max"]) + 1
    assert (data["steps"][0], data["steps"][-1]) == (1, 40) and data["steps"] == sorted(set(data["steps"]))
    for step, image in zip(data["steps"], data["images"], strict=True):
        assert abs(jpeg(image).mean() - 5 * step) < 3
    assert f'src="{data["images"][-1]}"' in text  # without scripts the last one is seen


def test_one_preview_needs_no_slider(configure, run_dir):
    (run_dir / "previews").mkdir()
    imageio.imwrite(run_dir / "previews" / "step-000003.png", np.zeros((24, 2000, 3), np.uint8))
    text = render_report(run_dir, configure(), None)
    assert 'type="range"' not in text
    (image,) = [a["src"] for name, a in Tags(text).seen if a.get("id") == "scrubber-image"]
    assert jpeg(image).shape[1] == report.PREVIEW_WIDTH


@pytest.mark.parametrize("status", ["interrupted", "diverged", "failed", None])
def test_a_run_that_is_not_done_says_what_that_means(configure, run_dir, status):
    summary = json.loads((run_dir / "summary.json").read_text()) | {
        "status": status,
        "reason": "SIGTERM <after> step 9",
    }
    (run_dir / "summary.json").unlink()
    if status is not None:
        (run_dir / "summary.json").write_text(json.dumps(summary))
    text = render_report(run_dir, configure(), None)
    assert report.STATUS[status or ""] in text and f"nfsd3d --resume {run_dir.name}" in text
    assert "<strong>unfinished.</strong>" in text if status is None else "SIGTERM &lt;after&gt; step 9" in text


def test_a_run_that_is_done_has_no_warning_and_no_resumption(configure, run_dir):
    text = render_report(run_dir, configure(), None)
    assert 'class="status"' not in text and "--resume" not in text
    assert f"nfsd3d --config {run_dir.name}/config.yaml" in text


def test_seconds_are_those_of_the_summary(configure, run_dir):
    costs = {"seconds": 905.2, "training_seconds": 444.1, "network_evaluations": 12345}
    summary = json.loads((run_dir / "summary.json").read_text()) | costs
    (run_dir / "summary.json").write_text(json.dumps(summary))
    text = render_report(run_dir, configure(), None)
    assert "20 of 20 steps in 444 s · 905 s with the export · 12,345 NFE" in text


def test_scores_and_figures_are_shown_where_there_are_any(configure, run_dir):
    scores = {"object": True, "iou": 0.81234, "janus": None, "view_error_deg": 4.0, "margins": [1, 2]}
    (run_dir / "evaluation.json").write_text(json.dumps(scores))
    (run_dir / "decomposition").mkdir()
    imageio.imwrite(run_dir / "decomposition" / "condition.png", np.full((9, 9, 3), 200, np.uint8))
    text = render_report(run_dir, configure(), None)
    for row in (("object", "yes"), ("iou", "0.8123"), ("janus", ""), ("view error deg", "4")):
        assert "".join(f"<td>{cell}</td>" for cell in row) in text
    assert "margins" not in text and 'alt="condition"' in text
    (run_dir / "evaluation.json").write_text("[1]")
    assert "<h2>Evaluation</h2>" not in render_report(run_dir, configure(), None)


def test_a_steered_run_says_so(configure, run_dir):
    changes = [{"step": 12, "guidance_scale": 20.0, "learning_rate_factor": 1.0, "t_min": None, "t_max": 0.5}]
    summary = json.loads((run_dir / "summary.json").read_text()) | {"steered": changes}
    (run_dir / "summary.json").write_text(json.dumps(summary))
    text = render_report(run_dir, configure(), None)
    assert "<td>12</td><td>20</td><td>1</td><td></td><td>0.5</td>" in text and "<th>guidance scale</th>" in text


def test_the_mesh_of_a_run_is_found_in_its_file(configure, run_dir, mesh, monkeypatch):
    (run_dir / "mesh").mkdir()
    content = glb_bytes(mesh, {})
    (run_dir / "mesh" / "model.glb").write_bytes(content)
    text = render_report(run_dir, configure(), None)
    assert base64.b64encode(content).decode() in text
    (canvas,) = [attributes for name, attributes in Tags(text).seen if name == "canvas"]
    assert canvas["tabindex"] == "0" and canvas["aria-label"] == "the mesh of a red cube"
    monkeypatch.setattr(report, "MAX_MESH_BYTES", len(content) - 1)
    assert "<canvas" not in render_report(run_dir, configure(), None)


def test_two_runs_are_compared(configure, run_dir, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    shutil.copytree(run_dir, other, dirs_exist_ok=True)
    (run_dir / "evaluation.json").write_text(json.dumps({"iou": 0.75}))
    runs = {"a/<x>": (run_dir, configure()), "b": (other, configure(seed=7, prompt="a blue cube", logger="wandb"))}
    text = render_comparison(runs)
    tags = Tags(text).seen
    assert sum(name == "img" for name, _ in tags) == 2
    rows = re.findall(r"<tr>((?:<td>.*?</td>)+)</tr>", text)
    assert set(rows) == {
        "<td>prompt</td><td>a red cube</td><td>a blue cube</td>",
        "<td>seed</td><td>0</td><td>7</td>",
        "<td>iou</td><td>0.75</td><td></td>",
    }
    charts = re.findall(r"<svg.*?</svg>", text)
    assert len(charts) == 2 and all(chart.count("<polyline") == 2 for chart in charts)
    assert "A: a/&lt;x&gt;, B: b" in text and "<x>" not in text
    assert "<p>none</p>" in render_comparison({"a": runs["b"], "b": runs["b"]})


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(300), None])
def test_damaged_and_foreign_files_are_left_out(configure, run_dir, content):
    (run_dir / "previews").mkdir()
    (run_dir / "decomposition").mkdir()
    imageio.imwrite(run_dir / "previews" / "step-000002.png", np.zeros((9, 9, 3), np.uint8))
    whole = (run_dir / "previews" / "step-000002.png").read_bytes()
    for name in ("previews/step-000004.png", "decomposition/x.png", "turntable.png"):
        (run_dir / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    for name in ("previews/step-final.png", "previews/step-000010 (1).png"):
        (run_dir / name).write_bytes(whole)
    (run_dir / "turntable.mp4").unlink()
    (run_dir / "turntable.mp4").mkdir()
    summary = json.loads((run_dir / "summary.json").read_text()) | {"steered": [1]}
    (run_dir / "summary.json").write_text(json.dumps(summary))
    (run_dir / "metrics.jsonl").write_text('{"step": 1, "grad_norm": 1e-320}\n')
    text = render_report(run_dir, configure(), None)
    assert json.loads(re.search(r'id="scrubber-data">(.*?)</script>', text)[1])["steps"] == [2]
    assert "<h2>Turntable</h2>" not in text and "<h2>Steered</h2>" not in text and text.count("<svg") == 1
    assert "<img" in render_comparison({"a": (run_dir, configure()), "b": (run_dir, configure(seed=3))})
