"""The Python interface: generate or load a run; get its views, turntable and mesh."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from nfsd3d.callbacks.callback import Callback
from nfsd3d.cli.launch import start
from nfsd3d.config import hardware
from nfsd3d.config.compose import compose_experiment, load_run_config
from nfsd3d.config.experiments import find_experiment
from nfsd3d.config.objects import register_object
from nfsd3d.config.schema import Config
from nfsd3d.errors import InputError, did_you_mean
from nfsd3d.export.extract import ExtractedMesh, OnProgress
from nfsd3d.export.formats.table import known_format, write_mesh
from nfsd3d.export.scene import extract_scene
from nfsd3d.generators.base import SceneGenerator
from nfsd3d.runs import checkpoints
from nfsd3d.runs.checkpoint_file import Checkpoint
from nfsd3d.runs.metrics import read_metrics
from nfsd3d.runs.summary import Summary, read_summary
from nfsd3d.settings.export import ExportSettings, Placement, check_packages
from nfsd3d.settings.paths import user_path
from nfsd3d.train.build import (
    CONTACT_SHEET_VIEWS,
    ELEVATION_DEG,
    build_prior,
    mesh_extras,
    mesh_settings,
    viewing_cameras,
)
from nfsd3d.train.build_generator import build_generator, build_images
from nfsd3d.train.previews import images_of
from nfsd3d.viewer.notebook import NotebookProgress, in_notebook
from nfsd3d.visualize.animation import Form, cut_outs, write_animation
from nfsd3d.visualize.images import render_views, rgb_image, to_uint8, write_turntable

if TYPE_CHECKING:
    import trimesh


class Run:
    """A run directory at one of its checkpoints, read-only. Returned by `generate` and `load_run`.

    The checkpoint is in memory: a run that trains on may remove its files.
    """

    def __init__(self, directory: Path, config: Config, checkpoint: Checkpoint) -> None:
        """Stores the arguments."""
        self.directory = directory
        self.config = config
        self._place = directory.absolute()  # the process may change its working directory
        self._checkpoint = checkpoint

    def __repr__(self) -> str:
        return f"Run({str(self.directory)!r}, prompt={self.config.prompt!r}, step={self.step})"

    def _repr_html_(self) -> str:
        """The run in a notebook: its views and facts."""
        from nfsd3d.viewer.notebook import run_html

        return run_html(self._place, self.config, self.summary, self.step)

    @property
    def step(self) -> int:
        """Training steps of the checkpoint."""
        return self._checkpoint.steps

    @property
    def summary(self) -> Summary:
        """The content of ``summary.json``; empty if the run has not ended."""
        return read_summary(self._place)

    @property
    def metrics(self) -> list[dict[str, float | None]]:
        """The logged steps, one dictionary each; lines that cannot be read are skipped."""
        return read_metrics(self._place / "metrics.jsonl")

    @cached_property
    def generator(self) -> SceneGenerator:
        """The trained NeRF or mesh on its device.

        Raises:
            InputError: the run made images.
        """
        if self.config.makes_images:
            kind = self.config.generator.type
            raise InputError(
                f"{self.directory}: made with generator={kind}, pictures without views or a mesh; they are in image.png"
            )
        generator = build_generator(self.config)
        checkpoints.load_generator(self._checkpoint, generator)
        return generator.requires_grad_(False)

    @cached_property
    def images(self) -> NDArray[np.uint8]:
        """[B,H,W,3] uint8, the images of a run with ``generator=latent|image``; the prior decodes latents.

        Raises:
            InputError: the run made a scene, or the prior's model is missing.
        """
        if not self.config.makes_images:
            raise InputError(f"{self.directory}: made a scene, which has views() and a mesh, but no images")
        prior = build_prior(self.config)
        generator = build_images(self.config, prior)
        checkpoints.load_generator(self._checkpoint, generator)
        return np.stack([to_uint8(image) for image in images_of(generator, prior)])

    def views(self, n: int = 8, size: int = 256, elevation_deg: float = ELEVATION_DEG) -> NDArray[np.uint8]:
        """[n,size,size,3] uint8, renderings from ``n`` cameras evenly around the object, the first at its front.

        ``size`` is in pixels, ``elevation_deg`` in degrees above the horizon.

        Raises:
            InputError: a count or size below 1, an elevation outside [-90, 90], or a run that made images.
        """
        if n < 1 or size < 1 or not -90 <= elevation_deg <= 90:
            raise InputError(f"n={n}, size={size}, elevation_deg={elevation_deg}: need n, size >= 1, -90..90 degrees")
        cameras = viewing_cameras(self.config, n, size, elevation_deg)
        return np.stack([rgb_image(view) for view in render_views(self.generator, cameras)])

    def turntable(
        self,
        folder: str | Path,
        frames: int = 60,
        size: int = 256,
        elevation_deg: float = ELEVATION_DEG,
        form: Form = "mp4",
    ) -> list[Path]:
        """Writes ``turntable.png`` (8 views) and ``turntable.mp4`` (image, depth, normals) to ``folder``.

        Returns their paths. ``size`` is the height and width of each view in pixels. The other forms show the object
        alone, on clear ground: ``turntable.gif``, ``turntable.webp``, or the files ``turntable/NNN.png``.

        Raises:
            InputError: no frames, an odd or too small size, an elevation outside [-90, 90], no such form, or a run that
                made images.
        """
        if form not in get_args(Form):
            raise InputError(f"form={form}: must be mp4, gif, webp or png")
        if frames < 1 or size < 2 or (size % 2 and form == "mp4") or not -90 <= elevation_deg <= 90:
            expected = "need frames >= 1, an even size and -90..90 degrees"
            raise InputError(f"frames={frames}, size={size}, elevation_deg={elevation_deg}: {expected}")
        folder = _path("folder", folder)
        generator = self.generator
        folder.mkdir(parents=True, exist_ok=True)
        if form != "mp4":
            cameras = viewing_cameras(self.config, frames, size, elevation_deg)
            return write_animation(folder, form, cut_outs(generator, cameras))
        return write_turntable(
            generator,
            folder,
            sheet=viewing_cameras(self.config, CONTACT_SHEET_VIEWS, size, elevation_deg),
            video=viewing_cameras(self.config, frames, size, elevation_deg),
            radius=generator.radius,
        )

    def extract(self, settings: ExportSettings | None = None, on_progress: OnProgress | None = None) -> ExtractedMesh:
        """The mesh, extracted with ``settings`` (default: the run's); see `nfsd3d.export.scene.extract_scene`.

        ``on_progress`` is called with the stage and the completed fraction.

        Raises:
            InputError: the field is empty or full at the threshold, or the run made images.
        """
        settings = settings or mesh_settings(self.config)
        return extract_scene(self.generator, settings, on_progress)

    @cached_property
    def mesh(self) -> trimesh.Trimesh:
        """The mesh at the run's settings, with vertex colours, z-up (front +x).

        Raises:
            InputError: as `extract`.
        """
        return self.extract(replace(mesh_settings(self.config), texture_size=0)).mesh.to_trimesh()

    def export(self, path: str | Path, **placement: str | float | None) -> Path:
        """Writes the mesh as GLB, OBJ, PLY, STL, 3MF or USDZ, by the suffix of ``path``; returns the path.

        GLB, OBJ and USDZ are textured and y-up. An OBJ's texture and material are written beside it under its name.
        ``placement``: size_mm, units, up, origin and compress, as in ``export`` of the configuration.

        Raises:
            InputError: another suffix, a placement that is none, or as `extract`.
        """
        path = _path("path", path)
        known = [field.name for field in fields(Placement)]
        for name in placement.keys() - set(known):
            raise InputError(f"{name}: is no placement{did_you_mean(name, known)}; there are {', '.join(known)}")
        given = {name: value.item() if isinstance(value, np.generic) else value for name, value in placement.items()}
        config = self.config.replace(export=self.config.to_dict()["export"] | given) if given else self.config
        check_packages((), config.export.compress if path.suffix.lower() == ".glb" else "none")
        known_format(path.suffix.lstrip("."))  # before the slow extraction
        extracted = self._extracted
        path.parent.mkdir(parents=True, exist_ok=True)
        write_mesh(extracted.mesh, path, mesh_extras(self.config), config.export)
        return path

    @cached_property
    def _extracted(self) -> ExtractedMesh:
        return self.extract(mesh_settings(self.config, textured=True))


def generate(
    prompt: str,
    config: str | Path = "nfsd",
    seed: int = 0,
    *,
    callbacks: Sequence[Callback] = (),
    method: object = None,
    prior: object = None,
    generator: object = None,
    **overrides: object,
) -> Run:
    """Trains and exports what ``prompt`` describes, as the command line does, and returns the finished run.

    ``config`` is an experiment's name or file. ``overrides`` are settings by dotted key, with plain values, lists or
    dictionaries: ``generate("a red mushroom", distill="sds", **{"train.steps": 300, "export.formats": ["obj"]})``.
    The ``callbacks`` see the steps, and may steer the run (`nfsd3d.callbacks`).

    ``method``, ``prior`` and ``generator`` are names, or objects: a `nfsd3d.distill.methods.Method`, a
    `nfsd3d.prior.base.Prior`, an `ImageGenerator` with ``learning_rates``, or a row that builds one of the latter two.
    A run with an object of yours is resumed and loaded where the same name is registered (`nfsd3d.config.objects`).

    Raises:
        TypeError: an object of another kind, or callbacks that are none.
        InputError: a setting, the prompt or the prior cannot be used.
        RunFailed: the run diverged, or its export failed.
        nfsd3d.train.interrupts.Interrupted: Ctrl-C or another signal that ends runs; the run can be resumed.
    """
    config = config if isinstance(config, str) else _path("config", config)
    if not isinstance(callbacks, Sequence) or not all(isinstance(given, Callback) for given in callbacks):
        raise TypeError("callbacks: give a list of objects of classes derived from nfsd3d.Callback")
    if method is not None and "distill" in overrides:
        raise TypeError("method, distill: are two names of one setting; leave one out")
    chosen = {"distill": method, "prior": prior, "generator": generator}
    overrides |= {key: register_object(key, value) for key, value in chosen.items() if value is not None}
    lines = [f"prompt={prompt}", f"seed={seed}", *_settings("", overrides)]
    composition = compose_experiment(find_experiment(config), lines)
    composed = composition.config
    if composed.dry_run:
        raise InputError(
            "dry_run=true has no result to return: use nfsd3d.config.compose.compose to see a configuration"
        )
    console = None
    if in_notebook():
        warnings.filterwarnings("ignore", "IProgress not found")  # of tqdm, whose bars are not shown
        console, callbacks = Console(quiet=True), [NotebookProgress(), *callbacks]
    run_dir = start(composed, Path(config).stem, composition.without_effect, callbacks=callbacks, console=console)
    assert run_dir is not None  # no dry run
    return load_run(run_dir)


def load_run(directory: str | Path, step: int | None = None) -> Run:
    """An existing run at its newest intact checkpoint, or at the one after ``step`` steps, which is read at once.

    Where the device or the backend of the training is missing, another is used, and a line on stderr says so.

    Raises:
        InputError: not a run directory, no such checkpoint, a damaged one, or one that needs tiny-cuda-nn, which is
            missing.
    """
    directory = user_path(_path("directory", directory))
    if step is not None and (type(step) is not int or step < 0):
        raise InputError(f"step={step!r}: not a number of steps; give a whole number, or None for the newest")
    config = load_run_config(directory)
    try:
        config, note = hardware.adapted(config)
    except InputError as error:
        raise InputError(f"{directory}: {error}") from error
    checkpoint = checkpoints.newest(directory) if step is None else checkpoints.at_step(directory, step)
    if note is not None:
        print(f"{directory}: {note}", file=sys.stderr)
    return Run(directory, config, checkpoint.generator_only())


def _path(name: str, value: object) -> Path:
    """The argument ``name`` as a path.

    Raises:
        InputError: it is neither text nor a path.
    """
    try:
        return Path(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise InputError(f"{name}={value!r}: not a path; give text or a pathlib.Path") from error


def _of_path(value: object) -> str:
    """A path in a list as text, for JSON."""
    if isinstance(value, Path):
        return str(value)
    raise TypeError


def _settings(prefix: str, values: Mapping[str, object]) -> list[str]:
    """``key=value`` of the command line for each dotted key: text as it is, other values as JSON.

    Raises:
        InputError: a value is neither text, a path, nor plain.
    """
    settings = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            settings += _settings(f"{prefix}{key}.", value)
        else:
            try:
                text = str(value) if isinstance(value, str | Path) else json.dumps(value, default=_of_path)
            except (TypeError, ValueError) as error:  # a circular list is a ValueError
                wrong = f"{prefix}{key}={value!r}: a {type(value).__name__} is no value of a setting"
                raise InputError(f"{wrong}; give text, a number, a path, a list or a dictionary") from error
            settings.append(f"{prefix}{key}={text}")
    return settings
