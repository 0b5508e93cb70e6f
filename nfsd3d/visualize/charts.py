"""Line charts, columns of dots, scatter plots and power laws as SVG, inline or as a picture of their own."""

import math
from collections.abc import Mapping, Sequence
from html import escape

COLORS = ("#3b82c4", "#d9663a", "#4b9a5b", "#9a5bb5")
WIDTH, HEIGHT = 440, 220
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 30, 26

Points = Sequence[tuple[float, float]]

STYLE = (
    "text { font: 11px sans-serif; fill: #1c2430 } .title { font-weight: bold } .grid { stroke: #d9dee7 } "
    "polyline { fill: none; stroke-width: 2 } .proportional { stroke: #98a2b3; stroke-dasharray: 4 4 }"
)
"""The style of a picture; in a page it is that of the page."""


def line_chart(title: str, series: Mapping[str, Points], *, logarithmic: bool = False) -> str:
    """An SVG of one line per series of (x, y) points; with ``logarithmic``, points of y <= 0 are omitted.

    Returns "" if no points remain.
    """
    lines = {name: [(x, y) for x, y in points if y > 0 or not logarithmic] for name, points in series.items()}
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return ""
    scale = math.log10 if logarithmic else float
    xs = [x for points in lines.values() for x, _ in points]
    ys = [scale(y) for points in lines.values() for _, y in points]
    x_low, x_high = min(xs), max(xs)
    y_low, y_high = _widened(min(ys), max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / ((x_high - x_low) or 1)
        up = (scale(y) - y_low) / (y_high - y_low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text class="title" x="{LEFT}" y="16">{escape(title)}</text>']
    for index in range(5):
        value = y_low + (y_high - y_low) * index / 4
        shown = 10**value if logarithmic else value
        y = HEIGHT - BOTTOM - index / 4 * (HEIGHT - TOP - BOTTOM)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{shown:.3g}</text>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 8}">{x_low:g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">step {x_high:g}</text>')
    for index, (name, points) in enumerate(lines.items()):
        color = COLORS[index % len(COLORS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        parts.append(f'<polyline points="{path}" style="stroke:{color}"/>')
        if len(points) == 1:  # which makes no line
            x, y = place(*points[0])
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" style="fill:{color}"/>')
        if len(lines) > 1:
            right = WIDTH - RIGHT - 96 * (len(lines) - 1 - index)
            parts.append(f'<text x="{right}" y="16" text-anchor="end" style="fill:{color}">{escape(name)}</text>')
    label = escape(title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def dot_chart(title: str, groups: Mapping[str, Sequence[float]]) -> str:
    """An SVG with a column for each group: its finite values as dots, and their mean as a bar.

    Returns "" if no value remains.
    """
    finite = {name: [value for value in values if math.isfinite(value)] for name, values in groups.items()}
    everything = [value for values in finite.values() for value in values]
    if not everything:
        return ""
    low, high = _widened(min(everything), max(everything))
    width = (WIDTH - LEFT - RIGHT) / len(finite)

    def height(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text class="title" x="{LEFT}" y="16">{escape(title)}</text>']
    for index in range(5):
        value = low + (high - low) * index / 4
        y = height(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for index, (name, values) in enumerate(finite.items()):
        x = LEFT + width * (index + 0.5)
        letters = max(3, int(width / 6))
        shown = name if len(name) <= letters else f"{name[: letters - 1]}…"
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(shown)}</text>')
        if values:
            mean = height(sum(values) / len(values))
            ends = f'x1="{x - width / 4:.1f}" x2="{x + width / 4:.1f}"'
            parts.append(f'<line {ends} y1="{mean:.1f}" y2="{mean:.1f}" style="stroke:{COLORS[1]};stroke-width:2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{height(v):.1f}" r="4" style="fill:{COLORS[0]}"/>' for v in values]
    label = escape(title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def scatter_chart(title: str, points: Points) -> str:
    """An SVG of (x, y) points as dots; "" without any."""
    if not points:
        return ""
    x_low, x_high = _widened(min(x for x, _ in points), max(x for x, _ in points))
    y_low, y_high = _widened(min(y for _, y in points), max(y for _, y in points))
    parts = [f'<text class="title" x="{LEFT}" y="16">{escape(title)}</text>']
    for index in range(5):
        up, y = index / 4, y_low + (y_high - y_low) * index / 4
        height = HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)
        across, x = LEFT + up * (WIDTH - LEFT - RIGHT), x_low + (x_high - x_low) * up
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{y:.3g}</text>')
        parts.append(f'<text x="{across:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{x:.3g}</text>')
    for x, y in points:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        height = HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        parts.append(f'<circle cx="{across:.1f}" cy="{height:.1f}" r="4" style="fill:{COLORS[0]}"/>')
    label = escape(title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def power_chart(title: str, points: Points) -> str:
    """An SVG of a line through (x, y) points, all above 0, on logarithmic scales; "" without any.

    A dashed line through the last point shows what would be proportional. The chart's height is at least a factor of
    10, so that what hardly changes looks so.
    """
    if not points:
        return ""
    x_low, x_high = _widened(*(math.log(choose(x for x, _ in points)) for choose in (min, max)))
    y_low, y_high = (math.log(choose(y for _, y in points)) for choose in (min, max))
    room = max(0.0, math.log(10) - (y_high - y_low)) / 2
    y_low, y_high = _widened(y_low - room, y_high + room)

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (math.log(x) - x_low) / (x_high - x_low), (math.log(y) - y_low) / (y_high - y_low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text class="title" x="{LEFT}" y="16">{escape(title)}</text>']
    for index in range(5):
        value = math.exp(y_low + (y_high - y_low) * index / 4)
        _, y = place(points[0][0], value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    for x, y in points:
        across, height = place(x, y)
        parts.append(f'<text x="{across:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{_short(x)}</text>')
        parts.append(f'<circle cx="{across:.1f}" cy="{height:.1f}" r="4" style="fill:{COLORS[0]}"/>')
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
    parts.append(f'<polyline points="{path}" style="stroke:{COLORS[0]}"/>')
    last_x, last_y = max(points)
    begin = max(math.exp(x_low), last_x * math.exp(y_low) / last_y)  # where the proportional line enters the chart
    (x1, y1), (x2, y2) = place(begin, last_y * begin / last_x), place(last_x, last_y)
    parts.append(f'<line class="proportional" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    label = escape(title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def picture(charts: Sequence[str], columns: int = 2) -> str:
    """A file of SVG with ``charts`` in so many columns, on white."""
    placed = [
        chart.replace(
            "<svg ",
            f'<svg x="{index % columns * WIDTH}" y="{index // columns * HEIGHT}" width="{WIDTH}" height="{HEIGHT}" ',
            1,
        )
        for index, chart in enumerate(charts)
    ]
    width, height = columns * WIDTH, -(-len(charts) // columns) * HEIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f'<style>{STYLE}</style><rect width="100%" height="100%" fill="white"/>{"".join(placed)}</svg>'
    )


def _short(value: float) -> str:
    """Two or three digits of a positive number: 0.042, 17, 262k, 4.2M."""
    for unit, factor in (("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.{max(0, 1 - int(math.log10(value / factor)))}f}{unit}"
    return f"{value:.3g}"


def _widened(low: float, high: float) -> tuple[float, float]:
    """The range with a margin of 5 %; never empty."""
    room = 0.05 * (high - low) or 0.05 * abs(low) or 0.5
    return low - room, high + room
