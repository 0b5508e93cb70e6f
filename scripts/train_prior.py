"""Trains the embedded prior from nothing: pictures, tokenizer, autoencoder, UNet and text encoder.

    python scripts/train_prior.py --out ~/prior-training --minutes 150

Interrupt it whenever you like; the same command goes on from the last checkpoint. The model appears in OUT/model,
sample sheets in OUT/samples-*.png. Copy OUT/model over nfsd3d/prior/shapes to ship it, or use it as it is:
prior.model=OUT/model. With --start MODEL it begins with the weights of a model that was exported before, for instance
nfsd3d/prior/shapes, instead of random ones.
"""

import argparse
from pathlib import Path


def main() -> None:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of pictures, checkpoints and the model")
    parser.add_argument("--minutes", type=float, default=150.0, help="training time in all, without the pictures")
    parser.add_argument("--autoencoder-share", type=float, default=0.25, help="the autoencoder's share of it")
    parser.add_argument("--pictures", type=int, default=32768, help="how many pictures to render")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="folder of a model whose weights to begin with")
    arguments = parser.parse_args()
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
        pictures=arguments.pictures,
        seed=arguments.seed,
        vae_minutes=arguments.minutes * arguments.autoencoder_share,
        unet_minutes=arguments.minutes * (1 - arguments.autoencoder_share),
    )
    print(f"model: {train(arguments.out, settings, torch.device(name), arguments.start)}")


if __name__ == "__main__":
    main()
