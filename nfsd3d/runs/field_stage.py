"""The field that a mesh's run trains first, as a run of its own in the folder ``field`` of the run's directory.

Design note. Problem: a field and the mesh that begins with it have different generators, optimisers and recipes, and
one checkpoint format and one loop should do for both. Idea: two runs, one within the other. The outer one starts from
the inner one as from any other run, and keeps a copy of that start, so that it is resumed as every run is.
"""

from contextlib import suppress
from pathlib import Path

from nfsd3d.config.compose import compose, load_run_config
from nfsd3d.config.schema import Config
from nfsd3d.errors import InputError
from nfsd3d.generators.mesh.settings import MeshSettings
from nfsd3d.runs.resumable import FIELD


def needs_field(config: Config) -> bool:
    """Whether the run of ``config`` begins with a field of its own."""
    sources = config.source_run, config.source_mesh
    return isinstance(config.generator, MeshSettings) and sources == (None, None) and config.refine is not None


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
    try:
        field = compose(refine.experiment, [*prompts, *chosen, *nothing, *steps, *refine.overrides])
    except InputError as error:
        raise InputError(f"refine.experiment={refine.experiment}: {error}") from error
    if field.makes_images or isinstance(field.generator, MeshSettings):
        raise InputError(f"refine.experiment={refine.experiment}: makes no field; choose an experiment of a NeRF")
    # The mesh's cube is the field's.
    generator = field.to_dict()["generator"] | {"radius": config.to_dict()["generator"]["radius"]}
    return field.replace(**shared(config), generator=generator, run_dir=str(folder))


def shared(config: Config) -> dict[str, object]:
    """What the field and the mesh have in common, in every process that computes them."""
    return {name: config.to_dict()[name] for name in ("machine", "backend", "prior", "viewer")}


def whole_run(run_dir: Path) -> Path:
    """The run that ``run_dir`` is the field of; or itself."""
    outer = run_dir.absolute().parent
    if run_dir.name == FIELD and (outer / "config.yaml").is_file():
        with suppress(InputError):
            config = load_run_config(outer)
            if isinstance(config.generator, MeshSettings) and config.refine is not None:
                return outer
    return run_dir
