"""Figures of the score decomposition as Markdown tables, verdicts and JSON."""

import math
from typing import TypedDict

from nfsd3d.decompose.figures import Figure
from nfsd3d.decompose.plots import ImageGrid
from nfsd3d.evaluate.statistics import Estimate
from nfsd3d.evaluate.tables import table


class EstimateJson(TypedDict):
    """An estimate at timestep ``t``; None stands for NaN."""

    t: int
    mean: float | None
    low: float | None
    high: float | None
    count: int


class ClaimJson(TypedDict):
    """A claim, its verdict, and its answers ``at`` each timestep."""

    statement: str
    of: str
    verdict: str
    at: dict[str, str]


class FigureJson(TypedDict):
    """A figure: estimates by table and row, and the claims on them."""

    tables: dict[str, dict[str, list[EstimateJson]]]
    claims: list[ClaimJson]


def markdown(name: str, figure: Figure, grid: ImageGrid) -> str:
    """The figure's tables, one column a timestep, and the file of its image grid."""

    def row(title: str, values: list[Estimate]) -> list[str]:
        return [title, *map(str, values)]

    head = [f"t = {t}" if i == 0 else str(t) for i, t in enumerate(figure.timesteps)]
    parts = [f"## {name}", f"`{name}.png` shows t = {grid.t}."]
    for title, rows in figure.tables.items():
        parts.append(table([title, *head], [row(label, values) for label, values in rows.items()]))
    return "\n\n".join(parts)


def verdict_lines(name: str, figure: Figure) -> list[str]:
    """A line for each statement: its verdicts, and the quantities that they are about."""
    statements: dict[str, dict[str, list[str]]] = {}
    for item in figure.claims:
        statements.setdefault(item.statement, {}).setdefault(item.verdict, []).append(item.of)
    lines = []
    for statement, found in statements.items():
        verdicts = "; ".join(f"**{verdict}**: {', '.join(subjects)}" for verdict, subjects in found.items())
        lines.append(f"- {name}: {statement}. {verdicts}")
    return lines


def figure_json(figure: Figure) -> FigureJson:
    """The figure for JSON, with None for NaN."""

    def entries(values: list[Estimate]) -> list[EstimateJson]:
        return [_entry(t, value) for t, value in zip(figure.timesteps, values, strict=True)]

    return {
        "tables": {
            title: {label: entries(values) for label, values in rows.items()} for title, rows in figure.tables.items()
        },
        "claims": [
            {
                "statement": c.statement,
                "of": c.of,
                "verdict": c.verdict,
                "at": {str(t): a for t, a in c.answers.items()},
            }
            for c in figure.claims
        ],
    }


def _entry(t: int, value: Estimate) -> EstimateJson:
    mean, low, high = (None if math.isnan(number) else number for number in (value.mean, value.low, value.high))
    return EstimateJson(t=t, mean=mean, low=low, high=high, count=value.count)
