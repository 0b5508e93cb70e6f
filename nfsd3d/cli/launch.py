"""How the command line starts one run, or one job of a sweep, and what it tells about it."""

import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

from nfsd3d.config.hardware import Choice
from nfsd3d.config.schema import Config
from nfsd3d.generators.nerf.settings import NeRFSettings
from nfsd3d.prior.files.resolve import ModelSource, fetch, prediction_type
from nfsd3d.settings.schedules import highest


def train(config: Config, source: ModelSource, resume: Path | None = None) -> None:
    """Downloads the model if need be and trains; ``resume`` is the directory of a run to continue.

    Raises:
        InputError, RunFailed, Interrupted: as `nfsd3d.train.run.train_and_export`.
    """
    files = fetch(source)
    if files.file is not None:
        # Files of models that predict different things can have the same tensors: only the user knows.
        predicted = prediction_type(files.folder)
        print(f"{files.file}: with the configurations in {files.folder}, which say {predicted}", file=sys.stderr)
    # Everything the user may have got wrong is known by now: torch and diffusers take seconds to import.
    from nfsd3d.train.run import train_and_export

    train_and_export(config, resume=resume)


def announce(choices: Mapping[str, Choice]) -> None:
    """Tells what each ``auto`` became, and why."""
    for group, choice in choices.items():
        print(f"{group}={choice.value} (auto: {choice.reason})", file=sys.stderr)


def print_plan(config: Config, source: ModelSource, run_dir: str) -> None:
    """The resolved configuration as YAML, and what a run would be, as comments."""
    shown = {"run directory": run_dir}
    if source.file is not None:
        shown["prior's weights"] = str(source.file)
    model = "prior's model" if source.file is None else "prior's layout"
    for name, part in ((model, source.model), ("prior's autoencoder", source.vae)):
        if part is not None:
            shown[name] = str(part.folder or f"to be downloaded: {' or '.join(part.hub_ids)}")
    if source.folder is not None:
        shown["prior's prediction type"] = prediction_type(source.folder)
    if isinstance(config.generator, NeRFSettings):
        pixels = config.train.batch_size * int(highest(config.train.resolution)) ** 2
        most = min(config.generator.max_samples, pixels * config.generator.samples_per_ray)
        cap = f"generator.max_samples={config.generator.max_samples}"
        shown["samples of a step"] = f"{most:,} at most, at every resolution ({cap}: where there are more, steps grow)"
    if config.machine.device != "cpu":
        from nfsd3d.train.memory.budget import predicted

        shown["memory of a step, predicted"] = predicted(config) or "known once the model is loaded"
    print(config.to_yaml(), end="")
    print("# dry run: nothing was started")
    for name, value in shown.items():
        print(f"# {name}: {value}")


def tell(error: Exception) -> None:
    """An error of the user's on one line of stderr; ``NFSD3D_DEBUG=1`` adds the traceback."""
    if os.environ.get("NFSD3D_DEBUG") == "1":
        traceback.print_exception(error)
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
