"""Trains the embedded prior from scratch: rendered images, tokenizer, autoencoder, UNet and text encoder.

    nfsd3d train-prior --out ~/prior-training --minutes 150
    nfsd3d train-prior --out ~/flow-training --minutes 150 --objective flow

With --objective flow the UNet of an existing model (--start, default: the embedded one) is trained on as a rectified
flow; autoencoder, tokenizer and text encoder stay as they are.

After an interruption, the same command resumes from the last checkpoint. The model is written to OUT/model, grids of
samples to OUT/samples-*.png. Use it with prior.model=OUT/model, or copy it over nfsd3d/prior/shapes to ship it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from nfsd3d.cli.options import Parser
from nfsd3d.prior.files.locate import EMBEDDED


def main(argv: Sequence[str]) -> int:
    """Trains, prints the model's folder, and returns 0."""
    command_line = parser()
    arguments = command_line.parse_args(argv)
    flow = arguments.objective == "flow"
    if flow and arguments.start is None:
        arguments.start = EMBEDDED
    if arguments.start is not None and not (arguments.start / "unet").is_dir():
        command_line.error(f"--start {arguments.start}: no model there; name the folder that holds unet/ and vae/")
    if arguments.minutes <= 0:
        command_line.error(f"--minutes {arguments.minutes:g}: must be above 0")
    share = arguments.autoencoder_share
    if share is None:
        share = 0.0 if flow else 0.25
    if flow and share:
        command_line.error(f"--autoencoder-share {share:g}: a flow keeps its model's autoencoder; leave it out")
    if not 0 <= share < 1:
        command_line.error(f"--autoencoder-share {share:g}: must be at least 0 and below 1")

    import torch

    from nfsd3d.shapes.training.common import TeacherSettings
    from nfsd3d.shapes.training.pipeline import train

    name = ("cuda" if torch.cuda.is_available() else "cpu") if arguments.device == "auto" else arguments.device
    settings = TeacherSettings(
        images=arguments.pictures,
        seed=arguments.seed,
        vae_minutes=arguments.minutes * share,
        unet_minutes=arguments.minutes * (1 - share),
        objective=arguments.objective,
    )
    print(f"model: {train(arguments.out, settings, torch.device(name), arguments.start)}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The options of ``nfsd3d train-prior``."""
    parser = Parser(
        prog="nfsd3d train-prior", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for images, checkpoints and the model")
    parser.add_argument(
        "--minutes", type=float, default=150.0, help="training time in minutes, without rendering (default: 150)"
    )
    parser.add_argument(
        "--autoencoder-share", type=float, help="fraction of it for the autoencoder (default: 0.25; of a flow 0)"
    )
    parser.add_argument("--pictures", type=int, default=32768, help="images to render (default: 32768)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    parser.add_argument("--seed", type=int, default=0, help="seed of the images and the training (default: 0)")
    parser.add_argument("--start", type=Path, help="start from this model's weights, for example nfsd3d/prior/shapes")
    parser.add_argument(
        "--objective", choices=("epsilon", "flow"), default="epsilon", help="what the UNet predicts (default: epsilon)"
    )
    return parser
