"""Checks of a valid configuration before torch is imported: device, samples, model, prompt, source."""

from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from nfsd3d.config import hardware
from nfsd3d.config.compose import load_run_config
from nfsd3d.config.schema import Config
from nfsd3d.config.trust import leaves
from nfsd3d.distill.methods import find_method
from nfsd3d.errors import InputError
from nfsd3d.generators.mesh.settings import MeshSettings
from nfsd3d.generators.nerf.settings import NeRFSettings
from nfsd3d.loggers import table as loggers
from nfsd3d.prior.families.table import PRESETS
from nfsd3d.prior.files.check_model import check_files
from nfsd3d.prior.files.count_tokens import TokenCounter
from nfsd3d.prior.files.download import fetch
from nfsd3d.prior.files.family_folder import PromptCounter
from nfsd3d.prior.files.folder import ModelFiles
from nfsd3d.prior.files.locate import ModelSource
from nfsd3d.prior.files.scheduler_config import TrainingSchedule
from nfsd3d.prior.priors import TABLE as PRIORS
from nfsd3d.prior.priors import no_lora_network
from nfsd3d.prior.vocabulary import check_prompt
from nfsd3d.runs.absolute_paths import with_absolute_paths
from nfsd3d.runs.field_stage import field_config, needs_field
from nfsd3d.runs.resumable import FIELD
from nfsd3d.runs.source_image import open_image
from nfsd3d.settings.export import check_packages
from nfsd3d.settings.paths import user_path
from nfsd3d.settings.prompt_texts import prompt_texts
from nfsd3d.settings.schedules import highest
from nfsd3d.settings.viewer import check_host, check_viser, host_and_port

SAMPLES_PER_RAY = 4
"""The minimum for a ray through a fully occupied cube; see the largest step size in
`nfsd3d.generators.nerf.sampling.sampling`."""


def check(config: Config, resume: Path | None = None, *, elsewhere: bool = False) -> ModelSource | None:
    """Checks that device, backend, model, prompt and source are compatible; returns the model's location.

    ``resume`` is the directory of a run to be resumed, which has a copy of its source. ``elsewhere``: the run is for
    another machine, whose GPU it checks there. Nothing is downloaded, and neither torch nor another slow package is
    imported.

    Raises:
        InputError: naming the setting, the value and the remedy.
    """
    if not (elsewhere and config.machine.device.startswith("cuda")):
        hardware.check_machine(config)
    if config.backend.sampler == "nerfacc":
        from nfsd3d.generators.nerf.sampling.nerfacc import check_nerfacc

        check_nerfacc()
    if find_method(config.distill.method).needs_lora and config.prior.name in PRESETS:
        raise no_lora_network(config.distill.method, config.prior.name)
    _check_samples(config)
    loggers.check(loggers.names_of(config.logger, config.train.tensorboard), config.train.tensorboard)
    if config.export.mesh and not config.makes_images and not elsewhere:
        check_packages(config.export.formats, config.export.compress if "glb" in config.export.formats else "none")
    if config.viewer:
        _check_viewer(config)
    source = find_model(config)
    if source is not None and source.folder is not None:
        if not source.missing:
            check_model(config, fetch(source))
        prompts = {"prompt": config.prompt, "negative_prompt": config.negative_prompt}
        if config.distill.method == "bridge":
            prompts["distill.better_suffix"] = config.distill.better_suffix
            prompts["distill.worse_suffix"] = config.distill.worse_suffix
        for setting, text in (prompts | {"source_prompt": config.source_prompt or ""}).items():
            check_prompt(source.folder, text, setting)
    if resume is not None and (resume / "checkpoints" / "source.json").is_file():
        _check_same_source(config, resume)
        return source
    if config.source_image is not None:
        open_image(config.source_image)
    if needs_field(config):
        check(field_config(config, Path(FIELD)), elsewhere=elsewhere)
    if config.source_mesh is not None:
        _check_source_mesh(config.source_mesh)
    if config.source_run is not None:
        _check_source_run(config, config.source_run)
    return source


def check_model(config: Config, files: ModelFiles) -> None:
    """Checks the files of a model on this machine, and prompts and weighting against them.

    Plug-ins' priors check their own.

    Raises:
        InputError: the files do not fit together, a prompt is too long for the text encoder, or w(t) is infinite.
    """
    if config.prior.name not in PRIORS.builtin:
        return
    training, tokens = _checked(files, tuple(_signatures(files)), config.prior.image_size)
    _check_weighting(config, training)
    if isinstance(tokens, TokenCounter):
        _check_lengths(config, tokens)
    else:
        _check_lengths_of_family(config, tokens)


@lru_cache(maxsize=4)  # a sweep checks the same model with each of its values
def _checked(
    files: ModelFiles, signatures: tuple[object, ...], image_size: int | None
) -> tuple[TrainingSchedule, TokenCounter | tuple[PromptCounter, ...]]:
    del signatures
    return check_files(files, image_size)


def _signatures(files: ModelFiles) -> Iterator[tuple[str, int, int]]:
    """What changes when a file of the model does: the path, time and size of each."""
    for root in filter(None, (files.folder, files.file, files.vae, files.base, *(lora.path for lora in files.loras))):
        for path in (root, *root.rglob("*")):
            with suppress(OSError):
                status = path.stat()
                yield str(path), status.st_mtime_ns, status.st_size


def _check_weighting(config: Config, training: TrainingSchedule) -> None:
    """Raises `InputError` if w(t) is infinite at a timestep that the run draws."""
    last = training.steps - 1
    reached = min(round(highest(config.train.t_max) * training.steps), last) == last
    weighting = config.distill.weighting
    if weighting in ("sigma_over_alpha", "velocity") and training.ends_in_noise and reached:
        raise InputError(
            f"distill.weighting={weighting}: is infinite at timestep {last}, where the model's noise schedule "
            f"ends without signal (alpha = 0); set train.t_max below {1 - 1 / training.steps:g}, or another weighting"
        )


def _prompts_of(config: Config) -> tuple[dict[str, list[str]], dict[str, tuple[str, str, str]]]:
    """The texts to embed by the prompt's name, and its (setting, value, text before the value)."""
    distill = config.distill
    suffixes = (distill.better_suffix, distill.worse_suffix)
    texts = prompt_texts(
        config.prompt,
        config.negative_prompt,
        config.prompts,
        needed=find_method(distill.method).all_prompts,
        source_prompt=config.source_prompt,
        suffixes=suffixes,
    )
    given = {
        "cond": ("prompt", config.prompt, ""),
        "neg": ("negative_prompt", config.negative_prompt, ""),
        "source_cond": ("source_prompt", config.source_prompt or "", ""),
        "better": ("distill.better_suffix", suffixes[0], config.prompt),
        "worse": ("distill.worse_suffix", suffixes[1], config.prompt),
    }
    return texts, given


def _check_lengths_of_family(config: Config, counters: tuple[PromptCounter, ...]) -> None:
    """Raises `InputError` if one of several text encoders cannot read a prompt as a whole."""
    texts, given = _prompts_of(config)
    for name, (setting, text, _) in given.items():
        for counter in counters:
            excess = max((counter.excess(view) for view in texts.get(name, [])), default=0)
            if excess > 0:
                shown = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
                raise InputError(
                    f"{setting}={shown!r} is {excess} tokens too long for the prior's {counter.name}, which reads "
                    f"{counter.length}: shorten it"
                )


def _check_lengths(config: Config, tokens: TokenCounter) -> None:
    """Raises `InputError` if the text encoder cannot read a prompt as a whole; the message names the setting."""
    texts, given = _prompts_of(config)
    for name, (setting, text, before) in given.items():
        longest = max((tokens.count(view) for view in texts.get(name, [])), default=0)
        if longest > tokens.length:
            view_words = longest - tokens.count(before + text)
            parts = [f"{view_words} of these are view words"] * (view_words > 0)
            parts += [f"{tokens.count(before)} of the prompt"] * bool(before)
            shown = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
            of_these = f", {' and '.join(parts)}," if parts else ""
            remedy = "shorten it, or set prompts.view_dependent=false" if view_words else "shorten it"
            raise InputError(
                f"{setting}={shown!r} is {longest} tokens long{of_these} and the prior reads {tokens.length}: {remedy}"
            )


def _check_viewer(config: Config) -> None:
    """Raises `InputError` if the run cannot be shown while it trains."""
    if config.makes_images:
        raise InputError(
            f"viewer=true: shows scenes, and generator={config.generator.type} makes pictures, which are in previews/ "
            "of the run; leave viewer out"
        )
    check_viser("viewer=true")
    check_host(f"viewer={config.viewer}", host_and_port(config.viewer)[0])


_SHOWN = 60  # characters of a prompt in a message


def _check_samples(config: Config) -> None:
    """Raises `InputError` if a fully occupied scene has too few samples at the highest resolution."""
    if not isinstance(config.generator, NeRFSettings):
        return
    rays = config.train.batch_size * int(highest(config.train.resolution)) ** 2
    if config.generator.max_samples < SAMPLES_PER_RAY * rays:
        raise InputError(
            f"generator.max_samples={config.generator.max_samples}: too few for {rays} rays in a step; "
            f"set at least {SAMPLES_PER_RAY * rays}, or lower train.resolution or train.batch_size"
        )


def find_model(config: Config) -> ModelSource | None:
    """The location of the prior's model: a local folder, or a hub id to download; None for a prior without files.

    Raises:
        InputError: no such prior; or see `nfsd3d.prior.files.locate.locate`.
    """
    return PRIORS.find(config.prior.name).locate(config.prior)


def _check_same_source(config: Config, run_dir: Path) -> None:
    """Raises `InputError` if ``config`` names another source than the run in ``run_dir`` started from."""
    former, now = with_absolute_paths(load_run_config(run_dir)), with_absolute_paths(config)
    for setting in ("source_run", "source_mesh", "source_image"):
        theirs, ours = getattr(former, setting), getattr(now, setting)
        if theirs != ours:
            raise InputError(
                f"{setting}={ours}: {run_dir} was started from {theirs}; a resumed run cannot change its source; "
                "start a new run"
            )


def _check_source_mesh(path: str) -> None:
    """Raises `InputError` unless there is such a file; what is in it is seen when the run begins."""
    if not user_path(path).is_file():
        raise InputError(f"source_mesh={path}: there is no such file; give a GLB, OBJ, PLY or STL file")


def _check_source_run(config: Config, run_dir: str) -> None:
    """Raises `InputError` unless ``run_dir`` is a run with a checkpoint of a generator like the one of ``config``."""
    try:
        source = load_run_config(run_dir)
    except InputError as error:
        raise InputError(f"source_run={run_dir}: {str(error).removeprefix(f'{run_dir}: ')}") from error
    if not any((user_path(run_dir) / "checkpoints").glob("step-*.json")):
        raise InputError(f"source_run={run_dir}: holds no checkpoint; choose a run that was trained")
    theirs, ours = leaves(source.to_dict()), leaves(config.to_dict())
    groups = ("generator.", *(("train.batch_size", "train.resolution") if config.makes_images else ()))
    if isinstance(config.generator, MeshSettings):
        groups = ("generator.radius",)  # the rest is the mesh's own
        if source.makes_images:
            raise InputError(f"source_run={run_dir}: made pictures, which have no mesh; choose the run of a scene")
    different = [key for key in theirs if key.startswith(groups) and theirs[key] != ours.get(key)]
    if different:
        key = "generator.type" if "generator.type" in different else different[0]
        raise InputError(
            f"source_run={run_dir}: has {key}={theirs[key]}, and this run {ours.get(key)}; an edit has the "
            f"generator of its source: set {key.removesuffix('.type')}={theirs[key]}"
        )
