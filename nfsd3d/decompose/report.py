"""Figures of the score decomposition as Markdown tables, verdicts and JSON."""

from dataclasses import asdict

from nfsd3d.decompose.figures import Figure
from nfsd3d.decompose.plots import ImageGrid
from nfsd3d.evaluate.statistics import Estimate
from nfsd3d.evaluate.tables import table


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


def figure_json(figure: Figure) -> dict[str, object]:
    """The figure for JSON (NaN is not replaced): estimates by table, row and timestep, and the claims with verdicts."""

    def entries(values: list[Estimate]) -> list[dict[str, object]]:
        return [{"t": t, **asdict(value)} for t, value in zip(figure.timesteps, values, strict=True)]

    return {
        "tables": {
            title: {label: entries(values) for label, values in rows.items()} for title, rows in figure.tables.items()
        },
        "claims": [
            {"statement": claim.statement, "of": claim.of, "verdict": claim.verdict, "at": claim.answers}
            for claim in figure.claims
        ],
    }
