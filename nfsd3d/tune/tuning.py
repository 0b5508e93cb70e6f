"""What a tuning is: its search space, its objective and the runs of each trial, as tuning.json keeps it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

from pydantic import TypeAdapter

from nfsd3d.errors import InputError
from nfsd3d.jobs.manifest import Manifest, job_folder, new_manifest
from nfsd3d.runs.files import read_bytes, write_json
from nfsd3d.runs.metrics import Metrics
from nfsd3d.tune.search_space import Dimension, Setting

NAME = "tuning.json"

SUMMARY = ("seconds", "network_evaluations")
"""Objectives that are fields of ``summary.json``; its ``final_metrics`` are objectives, too."""
IMAGES = ("object", "color", "pattern", "retrieved", "margin")
"""Objectives from the evaluation of images: fields of `nfsd3d.evaluate.score_images.ImageScore`."""
SCENE = (
    *IMAGES,
    *("views_right", "iou", "mesh_iou", "ellipsoid_iou", "source_iou", "view_error_deg", "janus", "sharpness"),
    "contrast",
)
"""Objectives from the evaluation of a scene: fields of `nfsd3d.evaluate.score_scene.RunScore`."""
METRICS = tuple(name for name in Metrics.__annotations__ if name != "seconds")
"""The metrics of a run: objectives, and what pruning may look at."""


@dataclass(frozen=True)
class Tuning:
    """A search for the settings with the best mean ``objective`` of a trial's runs, over ``trials`` trials.

    ``arguments`` begin the command line of every run, ``settings`` are searched, and ``averaged`` holds the texts of
    each override that a trial runs all values of, by key, with the values to show. ``prune`` is the metric of running
    jobs by which trials are ended early, if it is low (``prune_low``) or high, from the step ``warmup`` on. Runs are
    started in ``cwd``.
    """

    objective: str
    maximize: bool
    trials: int
    arguments: tuple[str, ...]
    settings: tuple[Setting, ...]
    averaged: dict[str, tuple[tuple[str, str], ...]]
    cwd: str
    prune: str | None = None
    prune_low: bool = True
    warmup: int = 0

    @property
    def aim(self) -> str:
        """What is searched for, in words."""
        return f"{'highest' if self.maximize else 'lowest'} {self.objective}"

    @property
    def dimensions(self) -> list[Dimension]:
        """All dimensions of the search space."""
        return [dimension for setting in self.settings for dimension in setting.dimensions]

    def overrides(self, values: Mapping[str, object]) -> list[str]:
        """The overrides of a trial with these values of the dimensions."""
        return [setting.override(values) for setting in self.settings]

    def manifest(self, folder: Path, number: int, values: Mapping[str, object]) -> Manifest:
        """The runs of a trial, in a folder below ``folder``."""
        jobs = []
        for index, combination in enumerate(product(*self.averaged.values())):
            shown = {key: value for key, (_, value) in zip(self.averaged, combination, strict=True)}
            arguments = [argument for argument, _ in combination]
            jobs.append((job_folder(index, shown), arguments, shown))
        shared = [*self.arguments, *self.overrides(values)]
        made = new_manifest(trial_folder(folder, number), "sweep", shared, list(self.averaged), jobs)
        return replace(made, cwd=Path(self.cwd))


@dataclass(frozen=True)
class Record:
    """A trial: its ``state`` (running, complete, pruned or fail), its ``value`` if complete, and why it has none."""

    number: int
    state: str
    value: float | None
    values: dict[str, object]
    reason: str


def trial_folder(folder: Path, number: int) -> Path:
    """The folder of a trial, with the manifest of its runs."""
    return folder / f"trial-{number:03d}"


def write(folder: Path, tuning: Tuning) -> None:
    """Writes the tuning into its folder, which exists."""
    write_json(folder / NAME, asdict(tuning))


def read(folder: Path) -> Tuning:
    """The tuning in ``folder``.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    path = folder / NAME
    try:
        return TypeAdapter(Tuning).validate_json(read_bytes(path))
    except FileNotFoundError as error:
        raise InputError(f"{folder}: holds no {NAME}; give the folder of a tuning") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: not a tuning of this version; begin another") from error


def check_objective(name: str, option: str, *, images: bool) -> None:
    """Raises `InputError` unless runs have the objective ``name``; ``images``: they make images, not a scene."""
    known = {*SUMMARY, *METRICS, *(IMAGES if images else SCENE)}
    if name not in known:
        kind = "of images" if images else "of a scene"
        raise InputError(f"{option} {name}: no objective {kind}; there are {', '.join(sorted(known))}")
