"""The checks between a valid configuration and the slow imports: device, model, prompt, source, run directory."""

import hashlib
import itertools
import re
import tempfile
import unicodedata
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from nfsd3d.config import hardware
from nfsd3d.config.compose import config_root, load_run_config
from nfsd3d.config.schema import Config
from nfsd3d.errors import InputError
from nfsd3d.generators.nerf.settings import NeRFSettings
from nfsd3d.prior.files.resolve import ModelSource, locate
from nfsd3d.prior.vocabulary import check_prompt
from nfsd3d.runs.source_image import open_image
from nfsd3d.settings.schedules import highest

OUTPUTS = Path("outputs")
SAMPLES_PER_RAY = 4
"""The fewest that a ray through a full cube can do with; see the steps that `nfsd3d.generators.nerf.sampling.sampling`
takes at most."""


def check(config: Config, resume: Path | None = None) -> ModelSource:
    """Makes sure that device, backend, model, prompt and source go together; returns where the model is.

    ``resume`` is the directory of a run that goes on: it keeps what it started from. Nothing is downloaded, and nothing
    slow is imported.

    Raises:
        InputError: naming the setting, the value and the remedy.
    """
    hardware.check_machine(config)
    if config.backend.sampler == "nerfacc":
        from nfsd3d.generators.nerf.sampling.nerfacc import check_nerfacc

        check_nerfacc()
    _check_method(config.distill.method)
    _check_samples(config)
    source = find_model(config)
    if source.folder is not None:
        check_prompt(source.folder, config.prompt)
        check_prompt(source.folder, config.negative_prompt, "negative_prompt")
        if config.distill.method == "bridge":
            check_prompt(source.folder, config.distill.better_suffix, "distill.better_suffix")
            check_prompt(source.folder, config.distill.worse_suffix, "distill.worse_suffix")
        check_prompt(source.folder, config.source_prompt or "", "source_prompt")
    if resume is not None and (resume / "checkpoints" / "source.json").is_file():
        _check_same_source(config, resume)
        return source
    if config.source_image is not None:
        open_image(config.source_image)
    if config.source_run is not None:
        _check_source_run(config, config.source_run)
    return source


def _check_method(name: str) -> None:
    """Raises `InputError` for a method that is not there; the shipped ones are known without importing torch."""
    if not (config_root() / "distill" / f"{name}.yaml").is_file():
        from nfsd3d.distill.methods import find_method

        find_method(name)


def _check_samples(config: Config) -> None:
    """Raises `InputError` where a scene that fills up could not be sampled once its views are at their finest."""
    if not isinstance(config.generator, NeRFSettings):
        return
    rays = config.train.batch_size * int(highest(config.train.resolution)) ** 2
    if config.generator.max_samples < SAMPLES_PER_RAY * rays:
        raise InputError(
            f"generator.max_samples={config.generator.max_samples}: too few for {rays} rays in a step; "
            f"set at least {SAMPLES_PER_RAY * rays}, or lower train.resolution or train.batch_size"
        )


def find_model(config: Config) -> ModelSource:
    """Where the prior's model is, as far as this machine knows.

    Raises:
        InputError: see `nfsd3d.prior.files.resolve.locate`.
    """
    prior = config.prior
    return locate(prior.name, prior.model, prior.offline, vae=prior.vae, layout=prior.layout)


def _check_same_source(config: Config, run_dir: Path) -> None:
    """Raises `InputError` where another source is asked for than the one that the run has kept."""
    recorded = load_run_config(run_dir)
    for setting in ("source_run", "source_image"):
        theirs, ours = getattr(recorded, setting), getattr(config, setting)
        if theirs != ours:
            raise InputError(f"{setting}={ours}: {run_dir} has started from {theirs} and goes on so; start a new run")


def _check_source_run(config: Config, run_dir: str) -> None:
    """Raises `InputError` unless ``run_dir`` is a run with a checkpoint of a generator like the one of ``config``."""
    try:
        source = load_run_config(run_dir)
    except InputError as error:
        raise InputError(f"source_run: {error}") from error
    if not any((Path(run_dir).expanduser() / "checkpoints").glob("step-*.json")):
        raise InputError(f"source_run={run_dir}: holds no checkpoint; choose a run that was trained")
    for setting in ("generator", *(("train.batch_size", "train.resolution") if config.makes_images else ())):
        theirs, ours = _flat(source, setting), _flat(config, setting)
        different = [key for key in theirs if theirs[key] != ours.get(key)]
        if different:
            key = "generator.type" if "generator.type" in different else different[0]
            raise InputError(
                f"source_run={run_dir}: has {key}={theirs[key]}, and this run {ours.get(key)}; an edit has the "
                f"generator of its source: set {key.removesuffix('.type')}={theirs[key]}"
            )


def _flat(config: Config, setting: str) -> dict[str, Any]:
    """The value of a setting, or those of a group's settings, by their dotted keys."""

    def walk(key: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for name, item in value.items():
                yield from walk(f"{key}.{name}", item)
        else:
            yield key, value

    value: Any = config.to_dict()
    for name in setting.split("."):
        value = value[name]
    return dict(walk(setting, value))


def claim_run_dir(config: Config, name: str) -> Config:
    """The configuration with a run directory that exists, is empty, and can be written to.

    Without ``run_dir`` a new one is made: ``outputs/<name>/<prompt>/<time>``, even for runs of the same second.

    Raises:
        InputError: the given directory holds files already, or cannot be written to.
    """
    if config.run_dir is None:
        return config.replace(run_dir=str(new_folder(OUTPUTS / name / slug(config.prompt), "")))
    return config.replace(run_dir=str(claim_folder(Path(config.run_dir).expanduser())))


def claim_folder(path: Path) -> Path:
    """``path`` as an empty directory that can be written to, made if need be.

    Raises:
        InputError: it holds files already, or cannot be written to.
    """
    check_unused(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f"run_dir={path}: cannot be written ({error.strerror}); choose another") from error
    return path


def check_unused(path: Path) -> None:
    """Raises `InputError` unless ``path`` is absent or an empty directory."""
    try:
        if path.is_dir() and any(path.iterdir()):
            raise InputError(f"run_dir={path}: already used; choose another, or go on with --resume {path}")
        if path.exists() and not path.is_dir():
            raise InputError(f"run_dir={path}: is a file; choose a directory")
    except OSError as error:
        raise InputError(f"run_dir={path}: cannot be read ({error.strerror}); choose another") from error


def new_folder(parent: Path, prefix: str) -> Path:
    """Makes ``parent/<prefix><time>``, numbered from 2 where that exists already.

    Raises:
        InputError: it cannot be made.
    """
    stamp = prefix + datetime.now().strftime("%Y%m%d-%H%M%S")
    for number in itertools.count(1):
        path = parent / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(f"{path}: cannot be made ({error.strerror}); choose another with run_dir=PATH") from error
        return path
    raise AssertionError("unreachable")


def slug(text: str, limit: int = 60) -> str:
    """A short name for files: lower-case ASCII letters, digits and dashes; with a hash where letters are left out."""
    decomposed = unicodedata.normalize("NFKD", text)
    words = re.sub(r"[^a-z0-9]+", "-", decomposed.encode("ascii", "ignore").decode().lower()).strip("-")
    if len(words) <= limit and words and all(letter.isascii() for letter in decomposed if letter.isalnum()):
        return words
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"{words[: limit - len(digest) - 1].rstrip('-')}-{digest}".lstrip("-")
