"""report.html: a self-contained page of a run, without external files or network access."""

import base64
import io
from dataclasses import replace
from html import escape
from importlib.resources import files
from pathlib import Path

import imageio.v3 as imageio

from nfsd3d.config.schema import Config
from nfsd3d.export.mesh import SurfaceMesh, reduced
from nfsd3d.export.simplify import simplify_mesh
from nfsd3d.export.write import glb_bytes
from nfsd3d.runs.files import write_text
from nfsd3d.runs.metrics import read_metrics, series
from nfsd3d.runs.summary import Summary, read_summary
from nfsd3d.settings.schedules import value_at
from nfsd3d.visualize.charts import line_chart

MAX_TEXTURE = 1024
"""Maximum texels per side of the page's copy of the mesh."""

MAX_MESH_BYTES = 24 * 2**20
MAX_FACES = 60_000
"""A mesh whose file, with its texture reduced, exceeds ``MAX_MESH_BYTES`` is simplified to ``MAX_FACES`` triangles."""

MAX_VIDEO_BYTES = 4 * 2**20
"""A larger video is not embedded; the page refers to the file."""

PLOTS: tuple[tuple[str, dict[str, str], bool], ...] = (
    ("gradient on the latent", {"all": "grad_norm", "condition": "grad_norm_delta_c", "rest": "grad_norm_rest"}, True),
    ("gradient of the parameters", {"": "grad_norm_parameters"}, True),
    ("mean opacity", {"": "opacity"}, False),
    ("samples per ray", {"": "samples_per_ray"}, False),
    ("loss of the LoRA network", {"": "lora_loss"}, False),
    ("timesteps (fraction)", {"t_max": "t_max", "t_min": "t_min"}, False),
    ("steps per second", {"": "steps_per_second"}, False),
)
"""Title, the metric of each line by its label, and whether the axis is logarithmic."""


def write_report(run_dir: Path, config: Config, mesh: SurfaceMesh | None) -> None:
    """Writes ``report.html`` from the files in ``run_dir``, and ``mesh`` if there is one."""
    write_text(run_dir / "report.html", render_report(run_dir, config, mesh))


def render_report(run_dir: Path, config: Config, mesh: SurfaceMesh | None) -> str:
    """The page's HTML; sections without data are omitted."""
    sections = [
        f"<h1>{escape(config.prompt)}</h1>",
        f'<p class="facts">{_facts(config, read_summary(run_dir))}</p>',
        _turntable(run_dir),
        _images(run_dir),
        _viewer(mesh),
        _plots(run_dir / "metrics.jsonl"),
        f"<h2>Configuration</h2><details><summary>config.yaml</summary><pre>{escape(config.to_yaml())}</pre></details>",
    ]
    style, script = (_asset(name) for name in ("report.css", "viewer.js"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(config.prompt)} · nfsd3d</title><style>\n{style}</style></head>\n<body>\n"
        + "\n".join(part for part in sections if part)
        + f"\n<script>\n{script}</script>\n</body></html>\n"
    )


def _facts(config: Config, summary: Summary) -> str:
    progress = (0.0, 1.0)  # a schedule is described by its ends
    scale, factor = config.distill.guidance_scale, config.distill.guidance_factor
    scales = dict.fromkeys(f"{value_at(scale, at) * value_at(factor, at):g}" for at in progress)
    facts = [
        f"{config.distill.method.upper()}, guidance {' to '.join(scales)}",
        f"prior {config.prior.model or config.prior.name}",
        f"seed {config.seed}",
    ]
    if summary:  # without its status, which is decided after the page is written
        facts.append(f"{summary['steps']} of {summary['steps_planned']} steps in {summary['seconds']:.0f} s")
    return escape(" · ".join(facts))


def _turntable(run_dir: Path) -> str:
    video, sheet = run_dir / "turntable.mp4", run_dir / "turntable.png"
    parts = []
    if video.exists() and video.stat().st_size <= MAX_VIDEO_BYTES:
        source = f"data:video/mp4;base64,{_base64(video.read_bytes())}"
        parts.append(f'<video src="{source}" autoplay loop muted playsinline controls></video>')
        parts.append('<p class="note">image, depth, normals</p>')
    elif video.exists():
        parts.append('<p class="note">The video is in turntable.mp4 beside this page.</p>')
    if sheet.exists():
        compressed = io.BytesIO()
        imageio.imwrite(compressed, imageio.imread(sheet), extension=".jpg", quality=88)
        source = f"data:image/jpeg;base64,{_base64(compressed.getvalue())}"
        parts.append(f'<img src="{source}" alt="eight views around the object, their normals below">')
    return "<h2>Turntable</h2>" + "".join(parts) if parts else ""


def _images(run_dir: Path) -> str:
    named = {"the images": run_dir / "image.png", "their initial images": run_dir / "source.png"}
    parts = [
        f'<img src="data:image/png;base64,{_base64(path.read_bytes())}" alt="{name}"><p class="note">{name}</p>'
        for name, path in named.items()
        if path.exists()
    ]
    return "<h2>Images</h2>" + "".join(parts) if parts else ""


def _viewer(mesh: SurfaceMesh | None) -> str:
    if mesh is None:
        return ""
    small = mesh
    if small.texture is not None:
        small = replace(small, texture=reduced(small.texture, MAX_TEXTURE))
    content = glb_bytes(small, {})
    if len(content) > MAX_MESH_BYTES:  # with vertex colours instead of the texture
        small = simplify_mesh(mesh, MAX_FACES)
        content = glb_bytes(small, {})
    model = _base64(content)
    colors = "vertex colours" if mesh.texture is None else f"a texture of {mesh.texture.size}²"
    shown = f"{len(mesh.faces):,} triangles, {colors}"
    if len(small.faces) < len(mesh.faces):
        shown += f" ({len(small.faces):,} with vertex colours shown here)"
    return (
        '<h2>Mesh</h2><canvas id="viewer"></canvas>'
        f'<p class="note" id="viewer-note">{shown}; drag to turn, wheel or two fingers to zoom, double click for '
        f'normals</p><script type="text/plain" id="model">{model}</script>'
    )


def _plots(path: Path) -> str:
    metrics = read_metrics(path)
    charts = []
    for title, lines, logarithmic in PLOTS:
        chart = line_chart(
            title, {label: series(metrics, key) for label, key in lines.items()}, logarithmic=logarithmic
        )
        if chart:
            charts.append(f"<figure>{chart}</figure>")
    return f'<h2>Training</h2><div class="plots">{"".join(charts)}</div>' if charts else ""


def _asset(name: str) -> str:
    return files("nfsd3d.visualize").joinpath("assets", name).read_text(encoding="utf-8")


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
