"""Trains the classifier of evaluate from scratch and calibrates it, in about half an hour on two cores.

    nfsd3d train-classifier --out FOLDER

Writes the weights and the calibration to FOLDER; the default is the package's own nfsd3d/evaluate/classifier/weights.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from nfsd3d.cli.options import Parser


def main(argv: Sequence[str]) -> int:
    """Trains and calibrates, prints the calibration, and returns 0."""
    arguments = parser().parse_args(argv)

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from nfsd3d.evaluate import tables
    from nfsd3d.evaluate.classifier import calibration, training
    from nfsd3d.evaluate.classifier.model import WEIGHTS
    from nfsd3d.prior.files.locate import EMBEDDED
    from nfsd3d.prior.load_prior import load_prior

    weights = (arguments.out or WEIGHTS.parent) / WEIGHTS.name
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}")) as progress:
        task = progress.add_task("images", total=arguments.pictures + 2048, note="")
        draw = [(arguments.pictures, training.SEED), (2048, training.SEED + 1)]
        truth, unseen = (
            training.render_truth(count, seed, on_images=lambda n: progress.advance(task, n)) for count, seed in draw
        )
        task = progress.add_task("classifier", total=arguments.steps, note="")
        classifier = training.train_classifier(
            truth, arguments.steps, on_step=lambda loss: progress.update(task, advance=1, note=f"loss {loss:.3f}")
        )
    training.save_classifier(classifier, weights)
    rows = calibration.calibrate_all(classifier, unseen, load_prior(EMBEDDED))
    calibration.save_calibration(rows, weights.with_name(calibration.STORED.name))
    print(tables.calibration_table(rows))
    return 0


def parser() -> argparse.ArgumentParser:
    """The options of ``nfsd3d train-classifier``."""
    parser = Parser(
        prog="nfsd3d train-classifier", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for the weights (default: in the package)")
    parser.add_argument("--pictures", type=int, default=28672, help="training images to render (default: 28672)")
    parser.add_argument("--steps", type=int, default=7000, help="training steps of 64 images (default: 7000)")
    return parser
