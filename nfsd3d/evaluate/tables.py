"""Scores as Markdown tables."""

import math
from collections.abc import Mapping

from nfsd3d.evaluate.classifier.calibration import Calibration
from nfsd3d.evaluate.clip import ClipRow, ClipScore
from nfsd3d.evaluate.score_images import ImageScore
from nfsd3d.evaluate.score_prior import SampleQuality
from nfsd3d.evaluate.score_scene import Row, RunScore, mean_of


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ruler, *rows))


def percent(share: float, digits: int = 0) -> str:
    """ "93 %", or "-" for NaN or None."""
    return "-" if math.isnan(share) else f"{100 * share:.{digits}f} %"


def number(value: float | None, digits: int = 2) -> str:
    """A number with ``digits`` decimals, or "-"."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def degrees(value: float | None) -> str:
    """ "12°", or "-"."""
    return "-" if value is None or math.isnan(value) else f"{value:.0f}°"


def yes(value: bool | None) -> str:
    """ "yes", "no" or "-"."""
    return "-" if value is None else "yes" if value else "no"


def calibration_table(rows: Mapping[str, Calibration]) -> str:
    """The classifier's calibrations, one row each."""
    head = ["the classifier on", "images", "object", "colour", "pattern", "R-Precision", "view word", "azimuth error"]

    def cells(name: str, c: Calibration) -> list[str]:
        shares = [percent(share, 1) for share in (c.object, c.color, c.pattern, c.retrieved, c.view)]
        return [name, str(c.images), *shares, degrees(c.azimuth_error_deg)]

    return table(head, [cells(name, row) for name, row in rows.items()])


def run_table(scores: Mapping[str, RunScore]) -> str:
    """One row per run, by name."""
    head = ["run", "prompt", "object", "colour", "pattern", "retrieved", "margin", "IoU", "mesh IoU", "ellipsoid"]
    head += ["IoU with source", "view error", "Janus", "status"]

    def cells(name: str, s: RunScore) -> list[str]:
        right = [yes(value) for value in (s.object, s.color, s.pattern, s.retrieved)]
        shape = [number(value) for value in (s.iou, s.mesh_iou, s.ellipsoid_iou, s.source_iou)]
        return [name, s.prompt, *right, number(s.margin, 1), *shape, degrees(s.view_error_deg), yes(s.janus), s.status]

    return table(head, [cells(name, score) for name, score in scores.items()])


def summary_table(rows: Mapping[str, Row]) -> str:
    """One row per method (or oracle fit), over its runs."""
    head = ["", "runs", "object", "colour", "pattern", "R-Precision", "margin", "IoU", "mesh IoU", "over ellipsoid"]
    head += ["IoU with source", "view error", "Janus", "sharpness", "contrast", "done", "seconds", "evaluations", "MB"]

    def cells(name: str, r: Row) -> list[str]:
        right = [percent(share) for share in (r.object, r.color, r.pattern, r.retrieved)]
        shape = [
            number(r.iou),
            number(r.mesh_iou),
            f"{r.iou_gain:+.2f}",
            number(r.source_iou),
            degrees(r.view_error_deg),
            percent(r.janus),
        ]
        cost = [percent(r.done), *(number(value, 0) for value in (r.seconds, r.evaluations, r.memory_mb))]
        look = [number(r.sharpness), number(r.contrast)]
        return [name, str(r.runs), *right, number(r.margin, 1), *shape, *look, *cost]

    return table(head, [cells(name, row) for name, row in rows.items()])


def image_table(groups: Mapping[str, Mapping[str, ImageScore]]) -> str:
    """One row per run of images, by name, and one for the mean of each group."""
    head = ["run", "prompt", "images", "object", "colour", "pattern", "R-Precision", "margin"]
    head += ["seconds", "evaluations", "MB"]

    def cells(name: str, prompt: str, scores: list[ImageScore]) -> list[str]:
        shares = [percent(mean_of(scores, share)) for share in ("object", "color", "pattern", "retrieved")]
        cost = [number(mean_of(scores, figure), 0) for figure in ("seconds", "evaluations", "memory_mb")]
        return [name, prompt, str(sum(s.images for s in scores)), *shares, number(mean_of(scores, "margin"), 1), *cost]

    rows = [cells(name, score.prompt, [score]) for runs in groups.values() for name, score in runs.items()]
    rows += [cells(name, "all", list(runs.values())) for name, runs in groups.items()]
    return table(head, rows)


def sample_table(rows: list[SampleQuality]) -> str:
    """The prior's own samples, one row per guidance scale."""
    head = ["guidance", "samples", "object", "colour", "pattern", "R-Precision", "view word"]

    def cells(q: SampleQuality) -> list[str]:
        shares = (q.object, q.color, q.pattern, q.retrieved, q.view)
        return [f"{q.guidance_scale:g}", str(q.images), *(percent(share, 1) for share in shares)]

    return table(head, [cells(row) for row in rows])


def clip_table(scores: Mapping[str, ClipScore]) -> str:
    """One row per run, by name."""
    head = ["run", "prompt", "CLIP score", "retrieved"]
    return table(head, [[name, s.prompt, number(s.score), yes(s.retrieved)] for name, s in scores.items()])


def clip_summary_table(rows: Mapping[str, ClipRow]) -> str:
    """One row per row of a suite."""
    head = ["row", "runs", "CLIP score", "retrieved", "diverged", "minutes", "GB"]

    def cells(name: str, row: ClipRow) -> list[str]:
        score = number(row.score) + ("" if row.deviation is None else f" ± {row.deviation:.2f}")
        shares = [percent(math.nan if share is None else share) for share in (row.retrieved, row.diverged)]
        return [name, str(row.runs), score, *shares, number(row.minutes, 1), number(row.memory_gb, 1)]

    return table(head, [cells(name, row) for name, row in rows.items()])
