"""A page that compares two runs: what differs in their settings, their results and their curves, beside each other."""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path

from nfsd3d.config.schema import Config
from nfsd3d.config.trust import leaves
from nfsd3d.runs.metrics import read_metrics, series
from nfsd3d.runs.summary import read_summary
from nfsd3d.visualize.charts import line_chart
from nfsd3d.visualize.page import page, plots, table
from nfsd3d.visualize.report import EVALUATION, PLOTS, STATUS, costs, method_name, result_image, scores

WITHOUT_EFFECT = ("run_dir", "dry_run", "viewer", "logger")


def render_comparison(runs: Mapping[str, tuple[Path, Config]]) -> str:
    """The page of two runs, given by their names."""
    names = list(runs)
    title = " and ".join(names)
    sections = [
        f"<h1>{escape(title)}</h1>",
        _side_by_side({name: _facts(folder, config) for name, (folder, config) in runs.items()}),
        _results(runs),
        f"<h2>Settings that differ</h2>{_settings(runs)}",
        _scores(runs),
        _plots(runs),
    ]
    return page(title, sections)


def _side_by_side(parts: Mapping[str, str]) -> str:
    cells = "".join(f"<div><h2>{escape(name)}</h2>{content}</div>" for name, content in parts.items())
    return f'<div class="two">{cells}</div>'


def _facts(folder: Path, config: Config) -> str:
    summary = read_summary(folder)
    status = summary.get("status", "")
    lines = [config.prompt, f"{method_name(config)}, seed {config.seed}", *costs(summary)]
    lines += [f"{status or 'unfinished'}. {STATUS.get(status, '')}"] if status != "done" else []
    return "".join(f'<p class="facts">{escape(line)}</p>' for line in lines)


def _results(runs: Mapping[str, tuple[Path, Config]]) -> str:
    """The contact sheet of each run, or its images, or its last preview."""
    sources = {name: result_image(folder) for name, (folder, _) in runs.items()}
    shown = {n: f'<img src="{source}" alt="views of {escape(n)}">' if source else "" for n, source in sources.items()}
    return _side_by_side(shown) if any(shown.values()) else ""


def _settings(runs: Mapping[str, tuple[Path, Config]]) -> str:
    values = [leaves(config.to_dict()) for _, config in runs.values()]
    keys = [key for key in dict.fromkeys(key for one in values for key in one) if not key.startswith(WITHOUT_EFFECT)]
    rows = [[key, *texts] for key in keys if len(set(texts := [_text(one.get(key)) for one in values])) > 1]
    return table(["setting", *runs], rows) if rows else "<p>none</p>"


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _scores(runs: Mapping[str, tuple[Path, Config]]) -> str:
    found = [dict(scores(folder / EVALUATION)) for folder, _ in runs.values()]
    names = dict.fromkeys(name for one in found for name in one)
    rows = [[name, *(one.get(name, "") for one in found)] for name in names]
    return f"<h2>Evaluation</h2>{table(['score', *runs], rows)}" if rows else ""


def _plots(runs: Mapping[str, tuple[Path, Config]]) -> str:
    """Each number of `PLOTS` as a chart with a line for each run."""
    metrics = {name: read_metrics(folder / "metrics.jsonl") for name, (folder, _) in runs.items()}
    short = dict(zip(runs, "AB", strict=True))
    charts = [
        line_chart(
            f"{title}{f', {label}' if label else ''}",
            {short[name]: series(found, key) for name, found in metrics.items()},
            logarithmic=logarithmic,
        )
        for title, lines, logarithmic in PLOTS
        for label, key in lines.items()
    ]
    legend = ", ".join(f"{letter}: {name}" for name, letter in short.items())
    return plots(charts, note=legend)
