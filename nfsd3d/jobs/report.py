"""sweep.html: one self-contained page of a set of jobs, with a sortable table, thumbnails and figures."""

import base64
import io
import math
import shlex
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from PIL import Image

from nfsd3d.jobs.manifest import Manifest
from nfsd3d.jobs.table import Row, counts_line, metric_names
from nfsd3d.runs.files import write_text
from nfsd3d.visualize.charts import dot_chart

NAME = "sweep.html"
MOST_THUMBNAILS = 500
"""Jobs with a thumbnail, the first ones; a page of more would take long to load."""
THUMBNAIL = 320
"""Pixels along the longer side of a thumbnail."""
MOST_VALUES = 24
"""Distinct values of a column for which there are figures."""
_PICTURES = ("turntable.png", "image.png", "thumbnail.jpg")


def write_report(manifest: Manifest, rows: Sequence[Row]) -> Path:
    """Writes ``sweep.html`` into the set's folder; returns its path."""
    path = manifest.folder / NAME
    write_text(path, render_report(manifest, rows))
    return path


def render_report(manifest: Manifest, rows: Sequence[Row]) -> str:
    """The page's HTML."""
    title = f"{manifest.kind} {manifest.folder.absolute().name}"
    assets = files("nfsd3d.visualize").joinpath("assets")
    style, table_style, sorting = (
        assets.joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "sweep.css", "sort_table.js")
    )
    command = escape(shlex.join(manifest.arguments))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} · nfsd3d</title><style>\n{style}{table_style}</style></head>\n<body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="facts">{escape(counts_line(rows))} · <code>{command}</code></p>\n'
        f"{_figures(manifest, rows)}\n<h2>Jobs</h2>\n{_table(manifest, rows)}\n"
        f"<script>\n{sorting}</script>\n</body></html>\n"
    )


def _table(manifest: Manifest, rows: Sequence[Row]) -> str:
    metrics = metric_names(rows)
    header = ["", "job", *manifest.columns, "status", "steps", "seconds", *metrics, "reason"]
    cells = "".join(f'<th tabindex="0">{escape(name)}</th>' for name in header)
    lines = [_line(manifest, row, metrics, shown=index < MOST_THUMBNAILS) for index, row in enumerate(rows)]
    body = f"<thead><tr>{cells}</tr></thead><tbody>\n{''.join(lines)}</tbody>"
    return f'<div class="scroll"><table class="sortable">{body}</table></div>'


def _line(manifest: Manifest, row: Row, metrics: Sequence[str], *, shown: bool) -> str:
    state, run_dir = row.state, manifest.run_dir(row.job)
    page = "report.html" if (run_dir / "report.html").exists() else ""
    picture = _thumbnail(run_dir) if shown else ""
    cells = [f'<a href="{escape(f"{row.job.directory}/{page}", quote=True)}">{picture or "files"}</a>']
    values: list[object] = [row.job.number, *row.job.values]
    after: list[object] = [state.steps, state.seconds, *(row.metrics.get(name) for name in metrics), state.reason]
    cells += [_text(value) for value in values]
    cells.append(f'<span class="{state.status}">{state.status}</span>')
    cells += [_text(value) for value in after]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n"


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))


def _thumbnail(run_dir: Path) -> str:
    """The job's picture as an ``img`` element: its turntable or image, else its newest preview; "" without any."""
    previews = sorted((run_dir / "previews").glob("step-*.png"))
    found = [path for name in _PICTURES if (path := run_dir / name).exists()] or previews[-1:]
    if not found:
        return ""
    try:
        with Image.open(found[0]) as image:
            small = image.convert("RGB")
    except (OSError, ValueError):
        return ""
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=80)
    source = base64.b64encode(stream.getvalue()).decode("ascii")
    return f'<img src="data:image/jpeg;base64,{source}" alt="{escape(run_dir.name, quote=True)}" loading="lazy">'


def _figures(manifest: Manifest, rows: Sequence[Row]) -> str:
    """A figure of each final metric that differs over each column with several values."""
    done = [row for row in rows if row.state.status == "done"]
    swept = {name.rpartition(".")[2] for name in manifest.columns}  # what was set is no result
    metrics = [
        name
        for name in metric_names(done)
        if name not in swept and len({row.metrics[name] for row in done if name in row.metrics}) > 1
    ]
    figures = []
    for column, name in enumerate(manifest.columns):
        values = list(dict.fromkeys(row.job.values[column] for row in rows))
        if not 1 < len(values) <= MOST_VALUES:
            continue
        for metric in metrics:
            having = [row for row in done if metric in row.metrics]
            groups = {
                value: [row.metrics[metric] for row in having if row.job.values[column] == value]
                for value in sorted(values, key=_sorted_by)
            }
            chart = dot_chart(f"{metric} over {name}", groups)
            figures.append(f"<figure>{chart}</figure>" if chart else "")
    return f'<h2>Results</h2><div class="plots">{"".join(figures)}</div>' if any(figures) else ""


def _sorted_by(value: str) -> tuple[float, str]:
    """Numbers in their order, before other texts."""
    try:
        return float(value), value
    except ValueError:
        return math.inf, value
