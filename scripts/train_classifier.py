"""Trains the classifier of evaluations from nothing and calibrates it: about half an hour on two cores.

    python scripts/train_classifier.py

Writes the weights and the calibration to nfsd3d/evaluate/classifier/weights (another folder: --out).
"""

import argparse
from pathlib import Path


def main() -> None:
    """Parses the command line, trains, calibrates and prints the calibration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the weights (default: inside the package)")
    parser.add_argument("--pictures", type=int, default=28672)
    parser.add_argument("--steps", type=int, default=7000)
    arguments = parser.parse_args()

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from nfsd3d.evaluate import tables
    from nfsd3d.evaluate.classifier import calibration, training
    from nfsd3d.evaluate.classifier.model import WEIGHTS
    from nfsd3d.prior.files.resolve import EMBEDDED
    from nfsd3d.prior.stable_diffusion import StableDiffusionPrior

    weights = (arguments.out or WEIGHTS.parent) / WEIGHTS.name
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}")) as progress:
        task = progress.add_task("pictures", total=arguments.pictures + 2048, note="")
        draw = [(arguments.pictures, training.SEED), (2048, training.SEED + 1)]
        truth, unseen = (
            training.render_truth(count, seed, on_pictures=lambda n: progress.advance(task, n)) for count, seed in draw
        )
        task = progress.add_task("classifier", total=arguments.steps, note="")
        classifier = training.train_classifier(
            truth, arguments.steps, on_step=lambda loss: progress.update(task, advance=1, note=f"loss {loss:.3f}")
        )
    training.save_classifier(classifier, weights)
    rows = calibration.calibrate_all(classifier, unseen, StableDiffusionPrior.load(EMBEDDED))
    calibration.save_calibration(rows, weights.with_name(calibration.STORED.name))
    print(tables.calibration_table(rows))


if __name__ == "__main__":
    main()
