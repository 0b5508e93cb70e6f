"""Scores of the meshes of many runs: means with intervals, differences of pairs, and their table."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from nfsd3d.errors import InputError
from nfsd3d.evaluate.score_mesh import MeshScore, check_run
from nfsd3d.evaluate.statistics import Estimate, estimate_over_prompts
from nfsd3d.evaluate.tables import table

OUTCOMES = {
    "psnr_truth": "PSNR, dB",
    "psnr_inside": "inside, dB",
    "silhouette_iou": "silhouette IoU",
    "mesh_iou": "mesh IoU",
    "object_right": "object",
    "colour_right": "colour",
    "pattern_right": "pattern",
    "margin": "margin",
}
"""The numbers of a :class:`MeshScore` that are averaged over runs, and their headings."""


def summarize(scores: Sequence[MeshScore]) -> dict[str, Estimate]:
    """Each outcome's mean over prompts, of the mean over a prompt's runs, with its 95 % interval."""
    return {name: _over_prompts([(score.prompt, _number(score, name)) for score in scores]) for name in OUTCOMES}


def differences(pairs: Sequence[tuple[MeshScore, MeshScore]]) -> dict[str, Estimate]:
    """Each outcome of the first of a pair minus that of the second, with its 95 % interval.

    The two have the same prompt and seed. Differences are averaged over the seeds of a prompt, then over prompts, which
    are resampled.
    """
    return {
        name: _over_prompts([(one.prompt, _number(one, name) - _number(other, name)) for one, other in pairs])
        for name in OUTCOMES
    }


def _number(score: MeshScore, outcome: str) -> float:
    return float(getattr(score, outcome))


def _over_prompts(values: Sequence[tuple[str, float]]) -> Estimate:
    """The estimate over prompts of the mean of each one's finite values, given as (prompt, value)."""
    by_prompt: dict[str, list[float]] = {}
    for prompt, value in values:
        if math.isfinite(value):
            by_prompt.setdefault(prompt, []).append(value)
    return estimate_over_prompts([sum(each) / len(each) for each in by_prompt.values()])


def pair_runs(run_dirs: Sequence[Path], against: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Each of ``run_dirs`` with the one of ``against`` that has its prompt and seed.

    Raises:
        InputError: a prompt and seed that only one of them has, or that one has twice; or as :func:`check_run`.
    """
    ours, theirs = (_by_prompt_and_seed(directories) for directories in (run_dirs, against))
    for key, directory in {**ours, **theirs}.items():
        if key not in ours or key not in theirs:
            other = "--against" if key in ours else "RUN_DIR"
            raise InputError(f"{directory}: no {other} has its prompt and seed, {key[0]!r} and {key[1]}; leave it out")
    return [(directory, theirs[key]) for key, directory in ours.items()]


def _by_prompt_and_seed(directories: Sequence[Path]) -> dict[tuple[str, int], Path]:
    found: dict[tuple[str, int], Path] = {}
    for directory in directories:
        config = check_run(directory)
        key = config.prompt, config.seed
        if key in found:
            raise InputError(f"{directory}: has the prompt and seed of {found[key]}; leave one of them out")
        found[key] = directory
    return found


def mesh_table(rows: Mapping[str, Sequence[MeshScore]], pairs: Sequence[tuple[MeshScore, MeshScore]] = ()) -> str:
    """One row per set of runs, means with 95 % intervals; and the differences of the ``pairs``, if there are any."""
    head = ["", "runs", "prompts", *OUTCOMES.values()]

    def cells(name: str, runs: int, estimates: Mapping[str, Estimate], sign: str = "") -> list[str]:
        prompts = max(estimate.count for estimate in estimates.values())
        return [name, str(runs), str(prompts), *(_cell(outcome, estimates[outcome], sign) for outcome in OUTCOMES)]

    lines = [cells(name, len(scores), summarize(scores)) for name, scores in rows.items()]
    if pairs:
        lines.append(cells("difference", len(pairs), differences(pairs), "+"))
    return table(head, lines)


def _cell(outcome: str, estimate: Estimate, sign: str) -> str:
    """A mean and its interval: shares in percent, IoU with three decimals."""
    if estimate.count == 0:
        return "-"
    share, digits = outcome.endswith("_right"), 3 if outcome.endswith("_iou") else 2
    mean, low, high = (
        f"{100 * value:{sign}.0f}" if share else f"{value:{sign}.{digits}f}"
        for value in (estimate.mean, estimate.low, estimate.high)
    )
    return f"{mean}{' %' if share else ''} [{low}, {high}]"
