"""The part of ``nfsd3d evaluate`` for prompts without ground truth: runs and suites scored by a CLIP model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nfsd3d.cli.options import counted
from nfsd3d.compare.suite import has_checkpoint
from nfsd3d.errors import InputError
from nfsd3d.jobs.state import object_in

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nfsd3d.api import Run
    from nfsd3d.evaluate.clip import ClipScore


def refuse_with_clip(options: argparse.Namespace) -> None:
    """Raises `InputError` for options that need ground truth."""
    for name, value in (("--sheet", options.sheet), ("--oracle-fit", options.oracle_fit)):
        if value:
            raise InputError(f"{name}: is for prompts with ground truth, and these are scored by CLIP; leave it out")


def evaluate_clip(run_dirs: Sequence[Path], clip: str) -> dict[str, ClipScore]:
    """Prints and returns the CLIP scores of runs, by their directory."""
    import torch

    from nfsd3d.api import load_run
    from nfsd3d.evaluate import tables
    from nfsd3d.evaluate.clip import ClipScorer

    scores = {}
    if run_dirs:
        scorer = ClipScorer.load(clip)
        runs, views = [load_run(directory) for directory in run_dirs], []
        with counted("views", len(runs)) as advance:
            for run in runs:
                views.append(torch.from_numpy(_images_of(run)).permute(0, 3, 1, 2).float() / 255)
                advance()
        found = scorer.score(views, [run.config.prompt for run in runs])
        scores = {str(directory): score for directory, score in zip(run_dirs, found, strict=True)}
    print(tables.clip_table(scores))
    return scores


def evaluate_clip_rows(groups: Mapping[str, list[Path]], clip: str) -> dict[str, object]:
    """Scores the runs of each row that came to a checkpoint; the others count as what their summary says."""
    from nfsd3d.evaluate import tables
    from nfsd3d.evaluate.clip import summarize_clip

    scored = [directory for members in groups.values() for directory in members if has_checkpoint(directory)]
    named = evaluate_clip(scored, clip)
    rows = {
        name: summarize_clip(
            [named[str(directory)] for directory in members if str(directory) in named],
            [object_in(directory / "summary.json") for directory in members],
        )
        for name, members in groups.items()
    }
    print(f"\n{tables.clip_summary_table(rows)}")
    return {"clip": named, "rows": rows}


def _images_of(run: Run) -> NDArray[np.uint8]:
    return run.images if run.config.makes_images else run.views(8, 224)
