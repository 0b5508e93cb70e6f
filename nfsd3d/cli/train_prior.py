"""Trains the embedded prior from scratch: rendered images, tokenizer, autoencoder, UNet and text encoder.

    nfsd3d train-prior --out ~/prior-training --minutes 150

After an interruption, the same command resumes from the last checkpoint. The model is written to OUT/model, grids of
samples to OUT/samples-*.png. Use it with prior.model=OUT/model, or copy it over nfsd3d/prior/shapes to ship it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from nfsd3d.cli.options import Parser


def main(argv: Sequence[str]) -> int:
    """Trains, prints the model's folder, and returns 0."""
    parser = Parser(
        prog="nfsd3d train-prior", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for images, checkpoints and the model")
    parser.add_argument(
        "--minutes", type=float, default=150.0, help="training time in minutes, without rendering (default: 150)"
    )
    parser.add_argument(
        "--autoencoder-share", type=float, default=0.25, help="fraction of it for the autoencoder (0.25)"
    )
    parser.add_argument("--pictures", type=int, default=32768, help="images to render (default: 32768)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    parser.add_argument("--seed", type=int, default=0, help="seed of the images and the training (default: 0)")
    parser.add_argument("--start", type=Path, help="start from this model's weights, for example nfsd3d/prior/shapes")
    arguments = parser.parse_args(argv)
    if arguments.start is not None and not (arguments.start / "unet").is_dir():
        parser.error(f"--start {arguments.start}: no model there; name the folder that holds unet/ and vae/")
    if arguments.minutes <= 0:
        parser.error(f"--minutes {arguments.minutes:g}: must be above 0")
    if not 0 <= arguments.autoencoder_share < 1:
        parser.error(f"--autoencoder-share {arguments.autoencoder_share:g}: must be at least 0 and below 1")

    import torch

    from nfsd3d.shapes.training.common import TeacherSettings
    from nfsd3d.shapes.training.pipeline import train

    name = ("cuda" if torch.cuda.is_available() else "cpu") if arguments.device == "auto" else arguments.device
    settings = TeacherSettings(
        images=arguments.pictures,
        seed=arguments.seed,
        vae_minutes=arguments.minutes * arguments.autoencoder_share,
        unet_minutes=arguments.minutes * (1 - arguments.autoencoder_share),
    )
    print(f"model: {train(arguments.out, settings, torch.device(name), arguments.start)}")
    return 0
