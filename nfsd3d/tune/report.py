"""The results of a search: its trials as a table, tune.csv, tune.json and tune.html, and all of its runs as one set."""

import csv
import io
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from importlib.resources import files
from pathlib import Path

from nfsd3d.jobs import table
from nfsd3d.jobs.manifest import Job, Manifest
from nfsd3d.jobs.report import write_report
from nfsd3d.runs.files import write_json, write_text
from nfsd3d.tune.tuning import Record, Tuning, trial_folder
from nfsd3d.visualize.charts import dot_chart, scatter_chart

CSV, JSON, PAGE = "tune.csv", "tune.json", "tune.html"


def best_of(tuning: Tuning, records: Sequence[Record]) -> Record | None:
    """The best trial so far, the earliest of equal ones; None if none is complete."""
    complete = [record for record in records if record.value is not None]
    sign = 1.0 if tuning.maximize else -1.0
    return max(complete, key=lambda record: sign * (record.value or 0.0), default=None)


def best_line(tuning: Tuning, record: Record) -> str:
    """A trial's number and value, and its overrides as they can be pasted into a command line."""
    overrides = shlex.join(tuning.overrides(record.values))
    return f"trial {record.number}, {tuning.objective} {record.value:.6g}: {overrides}"


def overview(folder: Path, tuning: Tuning, records: Sequence[Record]) -> Manifest:
    """All runs of all trials as one set, for the subcommand ``sweep``; it is not to be run."""
    names = [dimension.name for dimension in tuning.dimensions]
    jobs: list[Job] = []
    for record in records:
        if record.values.keys() < set(names):
            continue  # of a process that was killed before it had proposed all values
        trial = tuning.manifest(folder, record.number, record.values)
        values = (str(record.number), *(_text(record.values[name]) for name in names))
        overrides = tuple(tuning.overrides(record.values))
        for job in trial.jobs:
            directory = f"{trial.folder.name}/{job.directory}"
            jobs.append(Job(len(jobs), directory, (*overrides, *job.arguments), (*values, *job.values)))
    columns = ("trial", *names, *tuning.averaged)
    return Manifest(folder, "tune", tuning.arguments, columns, tuple(jobs), Path(tuning.cwd))


def write_results(folder: Path, tuning: Tuning, records: Sequence[Record]) -> list[Path]:
    """Writes the tables and pages of a search into its folder; returns their paths."""
    names = [dimension.name for dimension in tuning.dimensions]
    stream = io.StringIO()
    lines = csv.writer(stream)
    lines.writerow(["trial", "state", tuning.objective, *names, "reason", "directory"])
    for record in records:
        own = [record.values.get(name) for name in names]
        lines.writerow([record.number, record.state, record.value, *own, record.reason, _folder(record)])
    write_text(folder / CSV, stream.getvalue())
    best = best_of(tuning, records)
    facts = {
        "objective": tuning.objective,
        "direction": "maximize" if tuning.maximize else "minimize",
        "best": None if best is None else asdict(best) | {"overrides": tuning.overrides(best.values)},
        "trials": [asdict(record) | {"directory": _folder(record)} for record in records],
    }
    write_json(folder / JSON, facts)
    write_text(folder / PAGE, render(folder, tuning, records))
    runs = overview(folder, tuning, records)
    rows = table.rows_of(runs)
    return [folder / CSV, folder / JSON, folder / PAGE, *table.write_tables(runs, rows), write_report(runs, rows)]


def render(folder: Path, tuning: Tuning, records: Sequence[Record]) -> str:
    """The page of a search: the best trial, the objective over each dimension, and a table of all trials."""
    assets = files("nfsd3d.visualize").joinpath("assets")
    style, table_style, sorting = (
        assets.joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "sweep.css", "sort_table.js")
    )
    title = escape(f"tune {folder.absolute().name}")
    best = best_of(tuning, records)
    aim = f"{tuning.aim}, {counts_line(records)}"
    found = "" if best is None else f"<p>best: <code>{escape(best_line(tuning, best))}</code></p>\n"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title} · nfsd3d</title><style>\n{style}{table_style}</style></head>\n<body>\n"
        f'<h1>{title}</h1>\n<p class="facts">{escape(aim)} · <code>{escape(shlex.join(tuning.arguments))}</code> · '
        f'<a href="sweep.html">all runs</a></p>\n{found}<div class="plots">{_figures(tuning, records)}</div>\n'
        f"<h2>Trials</h2>\n{_table(tuning, records)}\n<script>\n{sorting}</script>\n</body></html>\n"
    )


def counts_line(records: Sequence[Record]) -> str:
    """The number of trials in each state: ``20 trials: 15 complete, 5 pruned``."""
    states = [record.state for record in records]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return f"{len(records)} trial{'s' * (len(records) != 1)}: {counts or 'none'}"


def _figures(tuning: Tuning, records: Sequence[Record]) -> str:
    """The objective over each dimension."""
    complete = [record for record in records if record.value is not None]
    charts = []
    for dimension in tuning.dimensions:
        title, pairs = (
            f"{tuning.objective} over {dimension.name}",
            [(record.values[dimension.name], record.value or 0.0) for record in complete],
        )
        if dimension.choices:
            groups = {choice: [value for chosen, value in pairs if chosen == choice] for choice in dimension.choices}
            charts.append(dot_chart(title, groups))
        else:
            charts.append(scatter_chart(title, [(float(str(x)), value) for x, value in pairs]))
    return "".join(f"<figure>{chart}</figure>" for chart in charts if chart)


def _table(tuning: Tuning, records: Sequence[Record]) -> str:
    names = [dimension.name for dimension in tuning.dimensions]
    head = "".join(f"<th>{escape(name)}</th>" for name in ("trial", "state", tuning.objective, *names, "reason"))
    lines = []
    for record in records:
        link = f'<a href="{_folder(record)}/">{record.number}</a>'
        cells = [record.state, record.value, *(record.values.get(name) for name in names), record.reason]
        lines.append("".join(f"<td>{cell}</td>" for cell in (link, *(escape(_text(cell)) for cell in cells))))
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return (
        f'<div class="scroll"><table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{body}</tbody></table></div>"
    )


def _folder(record: Record) -> str:
    return trial_folder(Path(), record.number).name


def _text(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
