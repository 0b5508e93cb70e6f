"""The Python interface: generate a run, or load one, and look at it."""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray

from nfsd3d.config import hardware
from nfsd3d.config.compose import compose, load_run_config
from nfsd3d.config.schema import Config
from nfsd3d.errors import InputError
from nfsd3d.export.extract import ExtractedMesh, OnProgress, extract_mesh
from nfsd3d.export.write import known_format, write_mesh
from nfsd3d.generators.nerf.nerf import NeRF
from nfsd3d.runs import checkpoints, preflight
from nfsd3d.runs.metrics import read_metrics
from nfsd3d.runs.summary import read_summary
from nfsd3d.settings.export import ExportSettings
from nfsd3d.train.build import (
    CONTACT_SHEET_VIEWS,
    ELEVATION_DEG,
    build_generator,
    build_images,
    build_prior,
    mesh_extras,
    mesh_settings,
    viewing_cameras,
)
from nfsd3d.train.previews import images_of
from nfsd3d.train.run import train_and_export
from nfsd3d.visualize.images import render_views, rgb_image, to_uint8, write_turntable


class Run:
    """A run directory with at least one checkpoint; read-only and final. Made by :func:`load_run`."""

    def __init__(self, directory: Path, config: Config, checkpoint: Path) -> None:
        """Nothing is loaded before it is needed."""
        self.directory = directory
        self.config = config
        self._checkpoint = checkpoint

    def __repr__(self) -> str:
        return f"Run({str(self.directory)!r}, prompt={self.config.prompt!r}, step={self.step})"

    @property
    def step(self) -> int:
        """Finished training steps of the checkpoint that is shown."""
        return checkpoints.step_of(self._checkpoint)

    @property
    def summary(self) -> dict[str, Any]:
        """The content of ``summary.json``; empty if the run has not ended."""
        return read_summary(self.directory)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The logged steps, one dictionary each."""
        path = self.directory / "metrics.jsonl"
        return read_metrics(path) if path.exists() else []

    @cached_property
    def generator(self) -> NeRF:
        """The trained NeRF on its device.

        Raises:
            InputError: the run made pictures, or the checkpoint is damaged.
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
        """[B,H,W,3] the pictures of a run with ``generator=latent|image``; latents are decoded by the run's prior.

        Raises:
            InputError: the run made a scene, the checkpoint is damaged, or the prior's model is not there.
        """
        if not self.config.makes_images:
            raise InputError(f"{self.directory}: made a scene, which has views() and a mesh, but no images")
        prior = build_prior(self.config)
        pictures = build_images(self.config, prior)
        checkpoints.load_generator(self._checkpoint, pictures)
        return np.stack([to_uint8(image) for image in images_of(pictures, prior)])

    def views(self, n: int = 8, size: int = 256, elevation_deg: float = ELEVATION_DEG) -> NDArray[np.uint8]:
        """[n,size,size,3] images from ``n`` cameras evenly around the object, the first at its front.

        Raises:
            InputError: a count or size below 1, an elevation outside [-90, 90], or a run that made pictures.
        """
        if n < 1 or size < 1 or not -90 <= elevation_deg <= 90:
            raise InputError(f"n={n}, size={size}, elevation_deg={elevation_deg}: need n, size >= 1, -90..90 degrees")
        cameras = viewing_cameras(self.config, n, size, elevation_deg)
        return np.stack([rgb_image(view) for view in render_views(self.generator, cameras)])

    def turntable(
        self, folder: str | Path, frames: int = 60, size: int = 256, elevation_deg: float = ELEVATION_DEG
    ) -> list[Path]:
        """Writes ``turntable.png`` (8 views) and ``turntable.mp4`` (image, depth, normals) to ``folder``.

        Returns their paths.

        Raises:
            InputError: no frames, an odd or too small size, an elevation outside [-90, 90], or a run that made
                pictures.
        """
        if frames < 1 or size < 2 or size % 2 or not -90 <= elevation_deg <= 90:
            expected = "need frames >= 1, an even size and -90..90 degrees"
            raise InputError(f"frames={frames}, size={size}, elevation_deg={elevation_deg}: {expected}")
        return write_turntable(
            self.generator,
            Path(folder),
            sheet=viewing_cameras(self.config, CONTACT_SHEET_VIEWS, size, elevation_deg),
            video=viewing_cameras(self.config, frames, size, elevation_deg),
            radius=self.generator.settings.radius,
        )

    def extract(self, settings: ExportSettings | None = None, on_progress: OnProgress | None = None) -> ExtractedMesh:
        """The surface at the run's own mesh settings, or others; ``on_progress`` is told the stage and the share done.

        Raises:
            InputError: the field is empty or full at the threshold, or the run made pictures.
        """
        settings = settings or mesh_settings(self.config)
        radius, device = self.generator.settings.radius, self.config.machine.device
        return extract_mesh(self.generator, radius, settings, device, on_progress)

    @cached_property
    def mesh(self) -> trimesh.Trimesh:
        """The surface at the run's own mesh settings, with vertex colours, z-up (front +x).

        Raises:
            InputError: as :meth:`extract`.
        """
        return self.extract(replace(mesh_settings(self.config), texture_size=0)).mesh.to_trimesh()

    def export(self, path: str | Path) -> Path:
        """Writes the mesh as ``.glb``, ``.obj``, ``.ply`` or ``.stl``, by the suffix of ``path``; returns the path.

        GLB and OBJ have a texture; that of an OBJ, and its material, lie beside it under its name.

        Raises:
            InputError: another suffix, or as :meth:`extract`.
        """
        path = Path(path)
        known_format(path.suffix.lstrip("."))  # told before the work
        write_mesh(self._extracted.mesh, path, mesh_extras(self.config))
        return path

    @cached_property
    def _extracted(self) -> ExtractedMesh:
        return self.extract(mesh_settings(self.config, textured=True))


def generate(prompt: str, config: str | Path = "nfsd", seed: int = 0, **overrides: Any) -> Run:
    """Makes what ``prompt`` describes, as ``launch.py`` does, and returns the finished run.

    ``config`` is an experiment's name or file. ``overrides`` are settings by their dotted key, with plain values, lists
    or dictionaries: ``generate("a red mushroom", distill="sds", **{"train.steps": 300, "export.formats": ["obj"]})``.

    Raises:
        InputError: a setting, the prompt or the prior cannot be used.
        RunFailed: the run diverged, or its export failed.
        nfsd3d.train.interrupts.Interrupted: Ctrl-C or SIGTERM; the run can be resumed.
    """
    composed = compose(config, [f"prompt={prompt}", f"seed={seed}", *_settings("", overrides)])
    if composed.dry_run:
        raise InputError(
            "dry_run=true has no result to return: use nfsd3d.config.compose.compose to see a configuration"
        )
    preflight.check(composed)
    return load_run(train_and_export(preflight.claim_run_dir(composed, Path(config).stem)))


def load_run(directory: str | Path, step: int | None = None) -> Run:
    """A run that exists, at its newest checkpoint or at the one after ``step`` steps.

    Where the device or the backend that it was trained with is not there, others take their place, and a line on
    stderr says so.

    Raises:
        InputError: not a run directory, no such checkpoint, or one that only tiny-cuda-nn reads, which is not there.
    """
    config = load_run_config(directory)
    directory = Path(directory).expanduser()
    try:
        config, note = hardware.adapted(config)
    except InputError as error:
        raise InputError(f"{directory}: {error}") from error
    checkpoint = checkpoints.latest(directory)
    if step is not None:
        checkpoint = checkpoint.with_name(f"step-{step:06d}.json")
        if not checkpoint.exists():
            there = ", ".join(
                str(checkpoints.step_of(path)) for path in checkpoints.list_checkpoints(checkpoint.parent)
            )
            raise InputError(f"{directory} has no checkpoint after step {step}; there are: {there}")
    if note is not None:
        print(f"{directory}: {note}", file=sys.stderr)
    return Run(directory, config, checkpoint)


def _settings(prefix: str, values: Mapping[str, Any]) -> list[str]:
    """Plain values as ``key=value`` of the command line: text as it is, the rest as JSON, one for each dotted key."""
    settings = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            settings += _settings(f"{prefix}{key}.", value)
        else:
            text = str(value) if isinstance(value, str | Path) else json.dumps(value)
            settings.append(f"{prefix}{key}={text}")
    return settings
