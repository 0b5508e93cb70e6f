"""report.html: a self-contained page of a run, without network access; its links lead to the files beside it."""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from html import escape
from pathlib import Path
from urllib.parse import quote

from nfsd3d.config.schema import Config
from nfsd3d.distill.methods import TABLE as METHODS
from nfsd3d.errors import InputError
from nfsd3d.export.formats.glb import glb_bytes
from nfsd3d.export.formats.read_glb import world_glb
from nfsd3d.export.simplify import simplify_mesh
from nfsd3d.generators.mesh.surface import SurfaceMesh, reduced
from nfsd3d.runs.files import json_object, read_bytes, write_text
from nfsd3d.runs.metrics import read_metrics, series
from nfsd3d.runs.summary import Summary, read_summary
from nfsd3d.settings.schedules import value_at
from nfsd3d.visualize.charts import line_chart
from nfsd3d.visualize.page import base64_text, image_source, in_words, page, plots, table

MAX_TEXTURE = 1024
"""Maximum texels per side of the page's copy of the mesh."""

MAX_MESH_BYTES = 24 * 2**20
MAX_FACES = 60_000
"""A mesh whose file, with its texture reduced, exceeds ``MAX_MESH_BYTES`` is simplified to ``MAX_FACES`` triangles."""

MAX_VIDEO_BYTES = 4 * 2**20
"""A larger video is not embedded; the page refers to the file."""

MAX_PREVIEWS, PREVIEW_WIDTH = 24, 720
"""Previews on the page, spread evenly over training, and the width in pixels to which larger ones are reduced."""

EVALUATION, DECOMPOSITION = "evaluation.json", "decomposition"
"""Files of a run with its scores (``nfsd3d evaluate``), and with figures (``nfsd3d decompose --out``)."""

DOWNLOADS = ("mesh/*", "turntable.mp4", "turntable.png", "image.png", "config.yaml", "summary.json", "metrics.jsonl")

PLOTS: tuple[tuple[str, dict[str, str], bool], ...] = (
    ("latent gradient", {"all": "grad_norm", "condition": "grad_norm_delta_c", "rest": "grad_norm_rest"}, True),
    ("gradient of the parameters", {"": "grad_norm_parameters"}, True),
    ("mean opacity", {"": "opacity"}, False),
    ("samples per ray", {"": "samples_per_ray"}, False),
    ("loss of the LoRA network", {"": "lora_loss"}, False),
    ("guidance scale", {"": "guidance_scale"}, False),
    ("timesteps (fraction)", {"t_max": "t_max", "t_min": "t_min"}, False),
    ("steps per second", {"": "steps_per_second"}, False),
)
"""Title, the metric of each line by its label, and whether the axis is logarithmic."""

STATUS = {
    "done": "",
    "interrupted": "The run was interrupted; its last checkpoint is saved, and it can be resumed.",
    "diverged": "The run diverged: the scene became empty, full or out of range. It stands at its last sound step.",
    "failed": "The run failed; what it had computed by then is kept.",
    "": "The run has not ended, or was killed; it can be resumed from its last checkpoint.",
}
"""What the status of a run means."""


def write_report(run_dir: Path, config: Config, mesh: SurfaceMesh | None = None) -> None:
    """Writes ``report.html`` from the files in ``run_dir``, and ``mesh`` if there is one (None: its GLB file)."""
    write_text(run_dir / "report.html", render_report(run_dir, config, mesh))


def render_report(run_dir: Path, config: Config, mesh: SurfaceMesh | None) -> str:
    """The page's HTML; sections without data are omitted."""
    summary = read_summary(run_dir)
    sections = [
        f"<h1>{escape(config.prompt)}</h1>",
        f'<p class="facts">{_facts(config, summary)}</p>',
        _status(summary),
        _downloads(run_dir),
        _turntable(run_dir),
        _images(run_dir),
        _viewer(mesh, run_dir / "mesh" / "model.glb", config.prompt),
        _previews(run_dir / "previews"),
        _evaluation(run_dir / EVALUATION),
        _figures(run_dir / DECOMPOSITION),
        _plots(run_dir / "metrics.jsonl"),
        _steered(summary),
        _commands(run_dir, summary),
        f"<h2>Configuration</h2><details><summary>config.yaml</summary><pre>{escape(config.to_yaml())}</pre></details>",
    ]
    return page(config.prompt, sections)


def _facts(config: Config, summary: Summary) -> str:
    progress = (0.0, 1.0)  # a schedule is described by its ends
    scale, factor = config.distill.guidance_scale, config.distill.guidance_factor
    scales = dict.fromkeys(f"{value_at(scale, at) * value_at(factor, at):g}" for at in progress)
    facts = [
        f"{method_name(config)}, guidance {' to '.join(scales)}" + (", steered" if summary.get("steered") else ""),
        f"prior {config.prior.model or config.prior.name}",
        f"seed {config.seed}",
    ]
    return escape(" · ".join([*facts, *costs(summary)]))


def method_name(config: Config) -> str:
    """The method as it is written: a plug-in's as its author does, the project's own in capitals."""
    name = config.distill.method
    return name.upper() if name in METHODS.builtin else name


def costs(summary: Summary) -> list[str]:
    """Steps, seconds and NFE of a run in words, as far as its summary has them."""
    if not {"steps", "steps_planned", "seconds"} <= summary.keys():
        return []
    trained = summary.get("training_seconds", summary["seconds"])
    found = [f"{summary['steps']} of {summary['steps_planned']} steps in {trained:.0f} s"]
    if summary["seconds"] >= trained + 1:
        found.append(f"{summary['seconds']:.0f} s with the export")
    if summary.get("network_evaluations"):
        found.append(f"{summary['network_evaluations']:,} NFE")
    return found


def _status(summary: Summary) -> str:
    status, reason = summary.get("status", ""), summary.get("reason")
    meaning = STATUS.get(status, "")
    if not meaning:
        return ""
    because = f" ({escape(reason)})" if reason else ""
    return f'<p class="status"><strong>{escape(status or "unfinished")}{because}.</strong> {meaning}</p>'


def _downloads(run_dir: Path) -> str:
    found = [path for pattern in DOWNLOADS for path in sorted(run_dir.glob(pattern)) if path.is_file()]
    links = [
        f'<a href="{quote(name)}" download>{escape(name)}</a> <span>{_size(path)}</span>'
        for path in found
        if (name := path.relative_to(run_dir).as_posix())
    ]
    return f'<nav class="downloads" aria-label="files of the run">{"".join(f"<p>{x}</p>" for x in links)}</nav>'


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 2**20:.1f} MB" if size >= 2**20 else f"{size / 2**10:.0f} kB"


def _turntable(run_dir: Path) -> str:
    video, sheet = run_dir / "turntable.mp4", run_dir / "turntable.png"
    parts = []
    if video.is_file() and video.stat().st_size <= MAX_VIDEO_BYTES:
        source = f"data:video/mp4;base64,{base64_text(video.read_bytes())}"
        parts.append(f'<video src="{source}" autoplay loop muted playsinline tabindex="0"></video>')
        parts.append('<p class="note">image, depth, normals; a click holds it</p>')
    elif video.is_file():
        parts.append('<p class="note">The video is in turntable.mp4 beside this page.</p>')
    if source := image_source(sheet):
        parts.append(f'<img src="{source}" alt="eight views around the object, their normals below">')
    return "<h2>Turntable</h2>" + "".join(parts) if parts else ""


def result_image(run_dir: Path) -> str:
    """The address of a run's contact sheet, of its images, or of its newest preview; "" if it has none."""
    places = [run_dir / "turntable.png", run_dir / "image.png", *reversed(_preview_files(run_dir / "previews"))]
    return next(filter(None, (image_source(path, PREVIEW_WIDTH) for path in places)), "")


def _preview_files(folder: Path) -> list[Path]:
    """The previews in the order of their steps."""
    found = {int(name[1]): path for path in folder.glob("step-*.png") if (name := _PREVIEW.fullmatch(path.name))}
    return [found[step] for step in sorted(found)]


_PREVIEW = re.compile(r"step-(\d+)\.png")


def _images(run_dir: Path) -> str:
    named = {"the images": run_dir / "image.png", "their initial images": run_dir / "source.png"}
    parts = [
        f'<img src="data:image/png;base64,{base64_text(path.read_bytes())}" alt="{name}"><p class="note">{name}</p>'
        for name, path in named.items()
        if path.is_file()
    ]
    return "<h2>Images</h2>" + "".join(parts) if parts else ""


def _viewer(mesh: SurfaceMesh | None, file: Path, prompt: str) -> str:
    if mesh is not None:
        content, shown = _small_glb(mesh)
    elif file.is_file() and file.stat().st_size <= MAX_MESH_BYTES:
        try:
            content, shown = world_glb(file), "mesh/model.glb"
        except InputError as error:
            return f'<h2>Mesh</h2><p class="note">{escape(str(error))}</p>'
    else:
        return ""
    return (
        f'<h2>Mesh</h2><canvas id="viewer" tabindex="0" role="img" aria-label="the mesh of {escape(prompt)}" '
        'aria-describedby="viewer-note"></canvas>'
        f'<p class="note" id="viewer-note">{shown}; drag or arrow keys to turn, wheel, two fingers or + and - to zoom, '
        "double click or n for normals, space to start and stop</p>"
        f'<script type="text/plain" id="model">{base64_text(content)}</script>'
    )


def _small_glb(mesh: SurfaceMesh) -> tuple[bytes, str]:
    """The GLB file of a mesh, small enough for a page, and a description."""
    small = mesh
    if small.texture is not None:
        small = replace(small, texture=reduced(small.texture, MAX_TEXTURE))
    content = glb_bytes(small, {})
    if len(content) > MAX_MESH_BYTES:  # with vertex colours instead of the texture
        small = simplify_mesh(mesh, MAX_FACES)
        content = glb_bytes(small, {})
    colors = "vertex colours" if mesh.texture is None else f"a texture of {mesh.texture.size}²"
    shown = f"{len(mesh.faces):,} triangles, {colors}"
    if len(small.faces) < len(mesh.faces):
        shown += f" ({len(small.faces):,} with vertex colours shown here)"
    return content, shown


def _previews(folder: Path) -> str:
    """The previews over training behind a slider."""
    found = _preview_files(folder)
    count = min(len(found), MAX_PREVIEWS)
    chosen = [found[round(index * (len(found) - 1) / max(count - 1, 1))] for index in range(count)]
    shown = {int(path.stem.removeprefix("step-")): image_source(path, PREVIEW_WIDTH) for path in chosen}
    shown = {step: source for step, source in shown.items() if source}
    if not shown:
        return ""
    steps, sources, count = list(shown), list(shown.values()), len(shown)
    slider = (
        f'<label>step <output id="scrubber-step">{steps[-1]}</output> <input type="range" id="scrubber" min="0" '
        f'max="{count - 1}" value="{count - 1}" aria-label="preview over training"></label>'
    )
    data = json.dumps({"steps": steps, "images": sources})
    return (
        f'<h2>Over training</h2><img id="scrubber-image" src="{sources[-1]}" alt="views after a step of training">'
        f'{slider if count > 1 else ""}<script type="application/json" id="scrubber-data">{data}</script>'
    )


def _evaluation(path: Path) -> str:
    rows = scores(path)
    return f"<h2>Evaluation</h2>{table(('score', 'value'), rows)}" if rows else ""


def scores(path: Path) -> list[tuple[str, str]]:
    """Names and values of the scores in the file that ``nfsd3d evaluate`` has kept; empty without one."""
    try:
        found = json_object(read_bytes(path))
    except (OSError, ValueError):
        return []
    plain = {name.replace("_", " "): value for name, value in found.items() if not isinstance(value, dict | list)}
    return [(name, in_words(value)) for name, value in plain.items()]


def _figures(folder: Path) -> str:
    found = sorted(folder.glob("*.png"))
    sources = {path.stem: source for path in found if (source := image_source(path))}
    images = [f'<img src="{source}" alt="{escape(name)}">' for name, source in sources.items()]
    return f"<h2>Decomposition</h2>{''.join(images)}" if images else ""


def _plots(path: Path) -> str:
    metrics = read_metrics(path)
    found = [
        line_chart(title, {label: series(metrics, key) for label, key in lines.items()}, logarithmic=logarithmic)
        for title, lines, logarithmic in PLOTS
    ]
    return plots(found)


def _steered(summary: Summary) -> str:
    """The changes by which somebody steered the run."""
    changes: list[Mapping[str, object]] = [one for one in summary.get("steered", []) if isinstance(one, dict)]
    if not changes:
        return ""
    names = list(changes[0])
    rows = [[in_words(change.get(name)) for name in names] for change in changes]
    note = '<p class="note">The run was steered while it trained; from the step after each of these on:</p>'
    return f"<h2>Steered</h2>{note}{table([name.replace('_', ' ') for name in names], rows)}"


def _commands(run_dir: Path, summary: Summary) -> str:
    folder = shlex.quote(run_dir.absolute().name)
    lines = [f"nfsd3d --config {folder}/config.yaml    # the same run again, in a new directory"]
    if summary.get("status") != "done":
        lines.append(f"nfsd3d --resume {folder}    # go on")
    lines += [f"nfsd3d view {folder}    # in the browser", f"nfsd3d export {folder} --formats obj,ply    # other files"]
    note = '<p class="note">In the folder that holds the run\'s:</p>'
    return f"<h2>Commands</h2>{note}<pre>{escape(chr(10).join(lines))}</pre>"
