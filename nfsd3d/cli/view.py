"""``nfsd3d view RUN_DIR...``: shows runs in the browser."""

from __future__ import annotations

import argparse
import os
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nfsd3d.cli.options import Parser, whole_number
from nfsd3d.config.compose import load_run_config
from nfsd3d.errors import InputError
from nfsd3d.jobs import manifest
from nfsd3d.settings.paths import user_path
from nfsd3d.settings.viewer import LOCAL, check_viser, url

if TYPE_CHECKING:
    from nfsd3d.viewer.pictures import Scene


def main(argv: Sequence[str]) -> int:
    """Serves the runs that ``argv`` names until it is interrupted.

    Raises:
        InputError: viser is missing, a folder is neither a run with a checkpoint nor a sweep that has one, or nothing
            can listen at the address.
    """
    options = parser().parse_args(argv)
    check_viser("view")
    folders = [run for folder in options.run_dir for run in _runs(user_path(folder))]
    scenes = {_name(folder, folders): partial(_scene, folder, options.step) for folder in folders}

    from nfsd3d.viewer.server import Viewer

    viewer = Viewer(scenes, options.host, options.port)
    try:
        print(f"{url(options.host, viewer.port)}  (Ctrl+C ends it)", flush=True)
        threading.Event().wait()
    finally:
        viewer.close()
    return 0


def _runs(folder: Path) -> list[Path]:
    """The run itself, or those runs of a sweep that have a checkpoint.

    Raises:
        InputError: there is none.
    """
    if not (folder / manifest.NAME).is_file():
        load_run_config(folder)
        return [folder]
    from nfsd3d.runs import checkpoints

    jobs = manifest.read(folder)
    found = [jobs.run_dir(job) for job in jobs.jobs if checkpoints.list_checkpoints(jobs.run_dir(job) / "checkpoints")]
    if not found:
        raise InputError(f"{folder}: none of its {len(jobs.jobs)} runs has a checkpoint yet; view it when one has")
    return found


def _name(folder: Path, folders: Sequence[Path]) -> str:
    """A short name of a folder among ``folders``: the part of its path that they do not share."""
    if len(folders) == 1:
        return folder.name
    return os.path.relpath(folder, os.path.commonpath(folders)) if len(set(folders)) > 1 else str(folder)


def _scene(folder: Path, step: int | None) -> Scene:
    """The scene of a run.

    Raises:
        InputError: it has no such checkpoint, or it made images.
    """
    from nfsd3d.api import load_run
    from nfsd3d.viewer.pictures import Scene
    from nfsd3d.viewer.pose import pose_of_training

    run = load_run(folder, step)
    config, mesh = run.config, folder / "mesh" / "model.glb"
    facts = (
        f"**{config.prompt}**",
        f"step {run.step} of {config.train.steps}, {config.distill.method}, seed {config.seed}",
    )
    return Scene(run.generator, "\n\n".join(facts), mesh, pose_of_training(config.cameras))


def parser() -> argparse.ArgumentParser:
    """The options of ``nfsd3d view``."""
    parser = Parser(
        prog="nfsd3d view",
        description="Show runs in the browser: drag to turn, scroll to come nearer. The view is coarse while the "
        "camera moves and sharp when it rests. Of several runs, or those of a sweep, two can be seen beside each other "
        "from one camera. From another machine: ssh -L 8080:127.0.0.1:8080 THIS_MACHINE, and the same address there.",
    )
    parser.add_argument("run_dir", nargs="+", type=Path, metavar="RUN_DIR", help="runs, or folders of sweeps")
    parser.add_argument("--step", type=whole_number(1), help="the checkpoint after this step (default: the newest)")
    parser.add_argument("--host", default=LOCAL, help=f"address to listen on (default: {LOCAL}, this machine only)")
    parser.add_argument(
        "--port", type=whole_number(1, 65535), default=8080, help="the first port to try (default: 8080)"
    )
    return parser
