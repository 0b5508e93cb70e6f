"""Starts or resumes one run in this process: checks, run directory, model download, training."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nfsd3d.config.compose import load_run_config
from nfsd3d.config.schema import Config
from nfsd3d.errors import InputError, RunFailed
from nfsd3d.generators.nerf.settings import NeRFSettings
from nfsd3d.prior.files.download import fetch
from nfsd3d.prior.files.locate import ModelSource
from nfsd3d.prior.files.scheduler_config import prediction_type
from nfsd3d.runs import directory, preflight
from nfsd3d.runs.field_stage import field_config, needs_field
from nfsd3d.runs.lock import owned
from nfsd3d.runs.resumable import FIELD, can_be_resumed
from nfsd3d.settings.paths import user_path
from nfsd3d.settings.schedules import highest
from nfsd3d.train.torchrun import ALONE, Worker

if TYPE_CHECKING:
    from rich.console import Console

    from nfsd3d.callbacks.callback import Callback


def start(
    config: Config,
    label: str,
    notes: Sequence[str] = (),
    worker: Worker = ALONE,
    callbacks: Sequence[Callback] = (),
    console: Console | None = None,
) -> Path | None:
    """Trains and exports ``config`` in a new run directory, and returns it; with ``dry_run`` prints the plan only.

    ``label`` names the run directory's parent where ``config.run_dir`` is None; ``notes`` are printed. Of several
    processes that share the run, ``worker`` is this one. Where torchrun has restarted them, the run is resumed. The
    first one calls the ``callbacks``, and shows its progress on the ``console``.

    Raises:
        InputError: before torch is imported, unless only the model's weights show it.
        RunFailed, Interrupted: as `nfsd3d.train.run.train_and_export`.
    """
    source = preflight.check(config)
    worker.check(config)
    if config.dry_run:
        if config.run_dir is not None:
            directory.check_unused(user_path(config.run_dir))
        announce(notes)
        print_plan(config, source, config.run_dir or f"{directory.OUTPUTS / label}/<prompt>/<time>")
        return None
    if not worker.first:
        return _train(config, source, worker)
    if (begun := worker.begun()) is not None:
        run_dir = Path(begun)
        if can_be_resumed(run_dir):
            from nfsd3d.runs.summary import read_summary  # imports torch

            if read_summary(run_dir).get("status") == "diverged":
                raise RunFailed(f"{run_dir}: diverged; not resumed after a restart, because it would diverge again")
            return resume(config, run_dir, worker)
        config = config.replace(run_dir=begun)
    with directory.claimed(config, label) as config:
        announce(notes)
        return _train(config, source, worker, callbacks=callbacks, console=console)


def resume(config: Config, run_dir: Path, worker: Worker = ALONE) -> Path | None:
    """As `start`, from the newest checkpoint in ``run_dir``.

    Raises:
        InputError, RunFailed, Interrupted: as `start`; InputError also without a checkpoint.
    """
    source = preflight.check(config, run_dir)
    worker.check(config)
    if not can_be_resumed(run_dir):
        raise InputError(
            f"--resume {run_dir}: holds no checkpoint; start the run anew with --config {run_dir}/config.yaml"
        )
    if config.dry_run:
        print_plan(config, source, str(run_dir))
        return None
    if worker.count == 1 and _is_done(config, run_dir):
        place = shlex.quote(str(run_dir))
        print(f"{run_dir}: is done; more steps: --resume {place} train.steps=N; its mesh again: nfsd3d export {place}")
        return run_dir
    run_dir = run_dir.absolute()  # the process may change its working directory
    if not worker.first:
        return _train(config, source, worker)
    with owned(run_dir):
        return _train(config, source, worker, resumed=run_dir)


def _is_done(config: Config, run_dir: Path) -> bool:
    """Whether the run has all results that ``config``, with which it is to be resumed, asks for."""
    with suppress(OSError, ValueError, AttributeError, TypeError):  # a damaged summary is written again
        summary_file, settings = run_dir / "summary.json", run_dir / "config.yaml"
        if settings.stat().st_mtime > summary_file.stat().st_mtime:  # it was edited since
            return False
        summary = json.loads(summary_file.read_text(encoding="utf-8"))
        there = all((run_dir / name).exists() for name in summary.get("exported") or ())
        finished = summary.get("status") == "done" and summary.get("steps") == config.train.steps
        return bool(finished and there) and config.to_yaml() == load_run_config(run_dir).to_yaml()
    return False


def _train(
    config: Config,
    source: ModelSource | None,
    worker: Worker,
    resumed: Path | None = None,
    callbacks: Sequence[Callback] = (),
    console: Console | None = None,
) -> Path | None:
    """The run directory after training and export; None in a process that follows the first one."""
    if not worker.first:
        worker.published()  # the first process downloads the model
    files = None if source is None else fetch(source)
    if files is not None and source is not None and source.missing:
        preflight.check_model(config, files)  # the files were not on this machine before
    if files is not None and files.file is not None:
        # Models with different prediction types can have identical tensors, so this cannot be checked.
        predicted = prediction_type(files.folder)
        print(f"{files.file}: with the configurations in {files.folder}, which say {predicted}", file=sys.stderr)
    # All settings are checked by now: torch and diffusers take seconds to import.
    if not worker.first:
        from nfsd3d.train.run import follow

        follow(config, worker)
        return None
    from nfsd3d.train.run import train_and_export

    return train_and_export(config, resume=resumed, worker=worker, callbacks=callbacks, console=console)


def announce(notes: Sequence[str]) -> None:
    """Prints lines on how the settings were understood."""
    for note in notes:
        print(note, file=sys.stderr)


def print_plan(config: Config, source: ModelSource | None, run_dir: str) -> None:
    """Prints the resolved configuration as YAML, and model, device and memory of a run, as comments."""
    shown = {"run directory": run_dir}
    if source is not None:
        shown |= _model_facts(source)
    if needs_field(config):
        field = field_config(config, Path(FIELD))
        shown["a field first"] = f"{field.train.steps:,} steps, in {run_dir}/{FIELD}"
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


def _model_facts(source: ModelSource) -> dict[str, str]:
    """Locations of the prior's model files, by kind."""
    shown = {}
    if source.file is not None:
        shown["prior's weights"] = str(source.file)
    model = "prior's model" if source.file is None else "prior's layout"
    for name, part in ((model, source.model), ("prior's autoencoder", source.vae)):
        if part is not None:
            shown[name] = str(part.folder or f"to be downloaded: {' or '.join(part.hub_ids)}")
    if source.loras:
        shown["prior's LoRAs"] = ", ".join(f"{lora.path} with weight {lora.weight:g}" for lora in source.loras)
    if source.folder is not None:
        shown["prior's prediction type"] = prediction_type(source.folder)
    return shown
