"""Trains the field that a mesh's run begins with (`nfsd3d.runs.field_stage`)."""

from collections.abc import Callable
from pathlib import Path

from nfsd3d.config.compose import load_run_config
from nfsd3d.config.schema import Config
from nfsd3d.runs import checkpoints, identity
from nfsd3d.runs.field_stage import field_config, shared
from nfsd3d.runs.files import write_text
from nfsd3d.runs.resumable import FIELD, can_be_resumed
from nfsd3d.runs.summary import Summary, read_summary


def train_field(config: Config, run_dir: Path, train: Callable[[Config, Path | None], object]) -> Config:
    """``config`` with the trained field as its source; the field is trained, or resumed, where it is not done.

    ``train`` gets the field's configuration, and its directory if it is to be resumed.

    Raises:
        InputError: ``refine`` cannot be used, or asks for fewer steps than are done.
    """
    folder = run_dir / FIELD
    begun = can_be_resumed(folder)
    field = field_config(config, folder)
    if begun:  # the rest is what it began with
        steps = field.to_dict()["train"]["steps"]
        field = load_run_config(folder).replace(**shared(config))
        train_settings = field.to_dict()["train"] | {"steps": steps}
        field = field.replace(train=train_settings)
    identity.write(run_dir, identity.read(run_dir))
    write_text(run_dir / "config.yaml", config.to_yaml())  # from now on it can be resumed
    if not begun or checkpoints.newest(folder).steps < field.train.steps:
        folder.mkdir(exist_ok=True)
        train(field, folder if begun else None)
    return config.replace(source_run=str(folder))


def before(config: Config, run_dir: Path) -> Summary:
    """The summary of the field that a run began with; empty where it began with none of its own."""
    if config.source_run is None or Path(config.source_run) != run_dir.absolute() / FIELD:
        return Summary()
    return read_summary(run_dir / FIELD)
