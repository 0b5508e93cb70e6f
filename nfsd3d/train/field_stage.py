"""The field that a mesh's run trains first, as a run of its own in the folder ``field`` of the run's directory.

Design note. Problem: a field and the mesh that begins with it have different generators, optimisers and recipes, and
one checkpoint format and one loop should do for both. Idea: two runs, one within the other. The outer one starts from
the inner one as from any other run, and keeps a copy of that start, so that it is resumed as every run is.
"""

from collections.abc import Callable
from pathlib import Path

from nfsd3d.config.compose import compose, load_run_config
from nfsd3d.config.schema import Config
from nfsd3d.errors import InputError
from nfsd3d.generators.mesh.settings import MeshSettings
from nfsd3d.runs import checkpoints
from nfsd3d.runs.files import write_text
from nfsd3d.runs.summary import Summary, read_summary

FOLDER = "field"


def needs_field(config: Config) -> bool:
    """Whether the run of ``config`` begins with a field of its own."""
    sources = config.source_run, config.source_mesh
    return isinstance(config.generator, MeshSettings) and sources == (None, None) and config.refine is not None


def train_field(config: Config, run_dir: Path, train: Callable[[Config, Path | None], object]) -> Config:
    """``config`` with the trained field as its source; the field is trained, or resumed, where it is not done.

    ``train`` gets the field's configuration, and its directory if it is to be resumed.
    """
    folder = run_dir / FOLDER
    write_text(run_dir / "config.yaml", config.to_yaml())  # the run can be resumed from now on
    begun = bool(checkpoints.list_checkpoints(folder / "checkpoints"))
    field = load_run_config(folder) if begun else field_config(config, folder)
    if not begun or checkpoints.newest(folder).steps < field.train.steps:
        folder.mkdir(exist_ok=True)
        train(field, folder if begun else None)
    return config.replace(source_run=str(folder))


def field_config(config: Config, folder: Path) -> Config:
    """The configuration of the field: ``refine.experiment``, with the prompt, teacher and machine of ``config``.

    Raises:
        InputError: there is no such experiment, or it makes no field.
    """
    refine = config.refine
    assert refine is not None
    method, group = config.distill.method, config.prior.name
    prompts = [f"prompt={config.prompt}", f"negative_prompt={config.negative_prompt}"]
    chosen = [f"distill={method}", f"prior={group}", f"machine={config.machine.name}", f"seed={config.seed}"]
    nothing = [f"export.{name}=false" for name in ("mesh", "turntable", "report")]
    steps = [] if refine.field_steps is None else [f"train.steps={refine.field_steps}"]
    field = compose(refine.experiment, [*prompts, *chosen, *nothing, *steps, *refine.overrides])
    if field.makes_images or isinstance(field.generator, MeshSettings):
        raise InputError(f"refine.experiment={refine.experiment}: makes no field; choose an experiment of a NeRF")
    shared = {name: config.to_dict()[name] for name in ("machine", "backend", "prior", "viewer")}
    return field.replace(**shared, run_dir=str(folder))


def before(config: Config, run_dir: Path) -> Summary:
    """The summary of the field that a run began with; empty where it began with none of its own."""
    if config.source_run is None or Path(config.source_run) != run_dir.absolute() / FOLDER:
        return Summary()
    return read_summary(run_dir / FOLDER)


def whole_run(run_dir: Path) -> Path:
    """The run that ``run_dir`` is the field of; or itself."""
    outer = run_dir.absolute().parent
    return outer if run_dir.name == FOLDER and (outer / "config.yaml").is_file() else run_dir
