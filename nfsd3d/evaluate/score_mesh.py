"""Agreement of an exported mesh with the true object of its prompt: unlit views, silhouettes, volume and content."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nfsd3d.api import load_run
from nfsd3d.config.compose import load_run_config
from nfsd3d.config.schema import Config
from nfsd3d.errors import InputError
from nfsd3d.evaluate.classifier.alignment import align
from nfsd3d.evaluate.classifier.model import SIZE as CLASSIFIED_SIZE
from nfsd3d.evaluate.classifier.model import Classifier
from nfsd3d.evaluate.geometry.iou import fit
from nfsd3d.evaluate.geometry.voxels import distances_to, grid_points, mesh_solid, object_named
from nfsd3d.evaluate.ground_truth import composition_of
from nfsd3d.evaluate.score_scene import VIEWS as CLASSIFIED_VIEWS
from nfsd3d.evaluate.statistics import Estimate, estimate_over_prompts
from nfsd3d.evaluate.tables import table, yes
from nfsd3d.export.formats.read_glb import read_glb
from nfsd3d.export.texture.rasterize import draw
from nfsd3d.generators.mesh.surface import SurfaceMesh
from nfsd3d.generators.settings import ImageSettings, LatentSettings, PluginGeneratorSettings
from nfsd3d.settings.paths import user_path
from nfsd3d.shapes.world.grammar import Composition
from nfsd3d.shapes.world.objects import BOUND, OBJECTS
from nfsd3d.shapes.world.render import render_views
from nfsd3d.train.build import viewing_cameras
from nfsd3d.views.cameras import Cameras, Rays

VIEWS, SIZE = 8, 128
"""Compared views around the object, and their height and width in pixels."""

SUPERSAMPLE = 4
"""Samples per pixel and axis, of the mesh and of the true object; a pixel is their mean."""

BACKGROUND = 0.5
"""Gray background of all views."""

RAYS_PER_BATCH = 2**18
"""Rays of true views that are traced together; it bounds the memory."""

GLB = Path("mesh/model.glb")
"""The mesh of a run, in its directory."""

HEADING_VIEWS, HEADING_SIZE = 4, 48
"""Views, and their height and width in pixels, by which headings of a pattern are compared."""

HEADINGS_DEG = (tuple(range(0, 360, 10)), (0, -4, -2, 2, 4))
"""Headings of the pattern of a round object: the best of the first ones, turned by the best of the others."""


@dataclass(frozen=True)
class TruePlace:
    """Placement of a true object: turned by ``rotation`` (radians about z), scaled, then shifted (world units)."""

    scale: float = 1.0
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rotation: float = 0.0


@dataclass(frozen=True)
class Views:
    """Unlit views over the gray background: ``image`` [B,3,H,W] and ``coverage`` [B,1,H,W], in [0,1]."""

    image: Tensor
    coverage: Tensor


@dataclass(frozen=True)
class MeshScore:
    """The score of a mesh.

    Over unlit views, in means over views: ``psnr_truth`` in dB over whole images; ``psnr_inside`` in dB over the pixels
    that both objects cover entirely, NaN without any; ``silhouette_iou`` of the pixels that each covers by more than
    half. ``mesh_iou`` is the intersection over union of the solids. ``object_right``, ``colour_right``,
    ``pattern_right`` and ``margin`` (nats) are judged by the classifier on all views together, as those of a run's
    field. ``place`` is the true object's.

    PSNR is higher for a blurred pattern than for a sharp one out of phase; compare it together with ``margin``.
    """

    prompt: str
    seed: int
    psnr_truth: float
    psnr_inside: float
    silhouette_iou: float
    mesh_iou: float
    object_right: bool
    colour_right: bool
    pattern_right: bool
    margin: float
    faces: int
    place: TruePlace

    def __str__(self) -> str:
        content = {"object": self.object_right, "colour": self.colour_right, "pattern": self.pattern_right}
        right = [f"{name} {yes(value)}" for name, value in content.items()]
        psnr = f"PSNR {self.psnr_truth:.2f} dB (inside {self.psnr_inside:.2f})"
        shape = f"silhouette IoU {self.silhouette_iou:.3f}, mesh IoU {self.mesh_iou:.3f}"
        return f"{psnr}, {shape}, {', '.join(right)}, margin {self.margin:.1f}"


@dataclass(frozen=True)
class ScoredMesh:
    """A score and what it compares: the views of the ``true`` object and of the ``mesh``."""

    score: MeshScore
    true: Views
    mesh: Views


def score_run_mesh(
    directory: Path, classifier: Classifier, glb: Path = GLB, place: TruePlace | None = None
) -> ScoredMesh:
    """The score of the mesh ``glb`` of a run, a path in its ``directory``; see :func:`score_mesh`.

    Raises:
        InputError: not a run, a prompt that is not one of the world of shapes, or no mesh; see :func:`mesh_of_run`.
    """
    return score_mesh(mesh_of_run(directory, glb), load_run_config(directory), classifier, place)


def check_run(directory: Path) -> Config:
    """The configuration of a run that can be scored; reads no checkpoint.

    Raises:
        InputError: not a run, it made images, or its prompt is not one of the world of shapes.
    """
    config = load_run_config(directory)
    if config.makes_images:
        kind = config.generator.type
        raise InputError(f"{directory}: made with generator={kind}, which has no mesh; give runs that made a scene")
    composition_of(config.prompt)
    return config


def mesh_of_run(directory: Path, glb: Path = GLB) -> SurfaceMesh:
    """The mesh ``glb`` of a run; ``mesh/model.glb`` is exported at the run's settings, and kept, if it is not there.

    Raises:
        InputError: no such file; a file that cannot be read; or it cannot be exported: no checkpoint, no surface, or
            the folder cannot be written.
    """
    path = user_path(directory) / glb
    if not os.path.isfile(path):
        if glb != GLB:
            raise InputError(f"{path}: no such mesh; only {GLB} is exported where it is missing")
        try:
            load_run(directory).export(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}); copy the run to another place") from error
    return read_glb(path)


def score_mesh(
    mesh: SurfaceMesh,
    config: Config,
    classifier: Classifier,
    place: TruePlace | None = None,
    size: int = SIZE,
) -> ScoredMesh:
    """The score of ``mesh`` (world coordinates) for the prompt, cameras and radius of ``config``.

    The true object has the prompt's pattern and its colours, in their order. Its size, its position and, if it has no
    front, its heading are fitted to ``mesh`` itself (:func:`fit_place`), or given by ``place``. ``mesh_iou`` is always
    after the mesh's own fit. The views have ``size`` x ``size`` pixels, elevation 15 degrees, and the mean distance and
    field of view of training.

    Raises:
        InputError: a prompt that is not one of the world of shapes, or a mesh that is not closed.
    """
    truth = composition_of(config.prompt)
    own, iou = fit_place(mesh, truth, config)
    place = own if place is None else place
    cameras = viewing_cameras(config, VIEWS, size)
    true, drawn = true_views(truth, place, cameras), mesh_views(mesh, cameras)
    both = (true.coverage > 1 - 1e-4) & (drawn.coverage > 1 - 1e-4)
    classified = mesh_views(mesh, viewing_cameras(config, CLASSIFIED_VIEWS, CLASSIFIED_SIZE))
    content = align(classifier.classify(classified.image).pooled(), [truth])
    score = MeshScore(
        prompt=config.prompt,
        seed=config.seed,
        psnr_truth=psnr(drawn.image, true.image),
        psnr_inside=psnr(drawn.image, true.image, both),
        silhouette_iou=silhouette_iou(drawn.coverage, true.coverage),
        mesh_iou=iou,
        object_right=bool(content.object),
        colour_right=bool(content.color),
        pattern_right=bool(content.pattern),
        margin=float(content.margin),
        faces=len(mesh.faces),
        place=place,
    )
    return ScoredMesh(score, true, drawn)


# --- the true object in the mesh's place -----------------------------------------------------------------------------


def fit_place(mesh: SurfaceMesh, truth: Composition, config: Config) -> tuple[TruePlace, float]:
    """The place of the true object at which its solid agrees best with that of ``mesh``, and their IoU there.

    Scale, shift and rotation are those of :func:`nfsd3d.evaluate.geometry.iou.fit`. Patterns are fixed to their
    object, without a random phase, but the solid of an object with rotational symmetry leaves the heading of its
    checks or dots open. It is then the one with the highest PSNR of views, of a fixed set: the four quarter turns of
    an object with four-fold symmetry, :data:`HEADINGS_DEG` of a round one.

    Raises:
        InputError: the mesh is not closed.
    """
    generator = config.generator
    assert not isinstance(generator, LatentSettings | ImageSettings | PluginGeneratorSettings)  # which have no mesh
    found = fit(mesh_solid(mesh.to_trimesh(), generator.radius), truth.object)
    place = TruePlace(found.scale, found.shift, found.rotation)
    rounds = _headings(truth)
    if rounds and not found.empty:
        cameras = viewing_cameras(config, HEADING_VIEWS, HEADING_SIZE)
        drawn = mesh_views(mesh, cameras, supersample=2).image

        def agreement(candidate: TruePlace) -> float:
            return psnr(true_views(truth, candidate, cameras, supersample=1).image, drawn)

        for turns in rounds:
            turned = [replace(place, rotation=place.rotation + math.radians(turn)) for turn in turns]
            place = max(turned, key=agreement)
    return place, found.iou


def _headings(truth: Composition) -> tuple[tuple[int, ...], ...]:
    """Turns in degrees that leave the object's solid as it is and move its pattern, to be tried one after the other."""
    if OBJECTS[truth.object].has_front or truth.pattern not in ("checkered", "dotted"):
        return ()
    return HEADINGS_DEG if _is_round(truth.object) else ((0, 90, 180, 270),)


@cache
def _is_round(name: str) -> bool:
    """Whether a turn of an eighth about z leaves the object as it is; one without a front has four-fold symmetry."""
    shape, cells = object_named(name), 24
    points = grid_points(BOUND, cells)
    distances = distances_to(shape, points)
    near = distances < 2 * BOUND / cells  # the distances of some objects are lower bounds, which need not be round
    turned = distances_to(shape, points[near] @ _turn(math.pi / 4).numpy())
    return float(abs(turned - distances[near]).max()) < 1e-3


def _turn(angle: float) -> Tensor:
    """[3,3], by which points [N,3] are multiplied to turn them by minus ``angle`` radians about z."""
    cosine, sine = math.cos(angle), math.sin(angle)
    return torch.tensor([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


@dataclass(frozen=True)
class _CamerasOfAnObject(Cameras):
    """Cameras in the world whose rays are in the coordinates of an object at ``place``."""

    place: TruePlace

    def rays(self) -> Rays:
        """See `Cameras.rays`; origins are in the object's units."""
        rays, place = super().rays(), self.place
        turn = _turn(place.rotation).to(rays.origins)
        origins = (rays.origins - rays.origins.new_tensor(place.shift)) @ turn / place.scale
        return Rays(origins, rays.directions @ turn)


def true_views(truth: Composition, place: TruePlace, cameras: Cameras, supersample: int = SUPERSAMPLE) -> Views:
    """Unlit views of the true object at ``place``: its exact colours and pattern."""
    views = []
    count = max(1, RAYS_PER_BATCH // (cameras.height * cameras.width * supersample**2))
    for start in range(0, len(cameras), count):
        batch = cameras[start : start + count]
        moved = _CamerasOfAnObject(**{each.name: getattr(batch, each.name) for each in fields(Cameras)}, place=place)
        gray = torch.full((len(batch), 3, batch.height, batch.width), BACKGROUND)
        views.append(render_views([truth] * len(batch), moved, gray, ambient=1.0, supersample=supersample))
    return Views(torch.cat([view.image for view in views]), torch.cat([view.mask for view in views]))


def mesh_views(mesh: SurfaceMesh, cameras: Cameras, supersample: int = SUPERSAMPLE) -> Views:
    """Unlit views of ``mesh`` (world coordinates), averaged like the true ones: in encoded colours."""
    images, coverages = [], []
    for index in range(len(cameras)):
        camera = cameras[index]
        image, covered = draw(mesh, camera.resized(camera.height * supersample, camera.width * supersample))
        image[~covered] = BACKGROUND
        images.append(F.avg_pool2d(torch.from_numpy(image).permute(2, 0, 1), supersample))
        coverages.append(F.avg_pool2d(torch.from_numpy(covered).float()[None], supersample))
    return Views(torch.stack(images).clamp(0, 1), torch.stack(coverages))


def psnr(images: Tensor, others: Tensor, where: Tensor | None = None) -> float:
    """The mean over views of the PSNR in dB of ``images`` [B,3,H,W] to ``others``, at the pixels ``where`` [B,1,H,W].

    Views without such pixels are left out; NaN if that leaves none.
    """
    weight = torch.ones_like(images[:, :1]) if where is None else where.to(images.dtype)
    error = ((images - others).square() * weight).mean(1).double().flatten(1).sum(1) / weight.double().flatten(1).sum(1)
    return float((-10 * error.log10()).nanmean())


def silhouette_iou(coverage: Tensor, other: Tensor) -> float:
    """The mean over views of the intersection over union of two silhouettes: coverage [B,1,H,W] > 0.5."""
    one, two = ((each > 0.5).flatten(1) for each in (coverage, other))
    return float(((one & two).sum(1) / (one | two).sum(1).clamp_min(1)).mean())


# --- sets of runs ----------------------------------------------------------------------------------------------------

OUTCOMES = {
    "psnr_truth": "PSNR, dB",
    "psnr_inside": "inside, dB",
    "silhouette_iou": "silhouette IoU",
    "mesh_iou": "mesh IoU",
    "object_right": "object",
    "colour_right": "colour",
    "pattern_right": "pattern",
    "margin": "margin",
}
"""The numbers of a :class:`MeshScore` that are averaged over runs, and their headings."""


def summarize(scores: Sequence[MeshScore]) -> dict[str, Estimate]:
    """Each outcome's mean over prompts, of the mean over a prompt's runs, with its 95 % interval."""
    return {name: _over_prompts([(score.prompt, _number(score, name)) for score in scores]) for name in OUTCOMES}


def differences(pairs: Sequence[tuple[MeshScore, MeshScore]]) -> dict[str, Estimate]:
    """Each outcome of the first of a pair minus that of the second, with its 95 % interval.

    The two have the same prompt and seed. Differences are averaged over the seeds of a prompt, then over prompts, which
    are resampled.
    """
    return {
        name: _over_prompts([(one.prompt, _number(one, name) - _number(other, name)) for one, other in pairs])
        for name in OUTCOMES
    }


def _number(score: MeshScore, outcome: str) -> float:
    return float(getattr(score, outcome))


def _over_prompts(values: Sequence[tuple[str, float]]) -> Estimate:
    """The estimate over prompts of the mean of each one's finite values, given as (prompt, value)."""
    by_prompt: dict[str, list[float]] = {}
    for prompt, value in values:
        if math.isfinite(value):
            by_prompt.setdefault(prompt, []).append(value)
    return estimate_over_prompts([sum(each) / len(each) for each in by_prompt.values()])


def pair_runs(run_dirs: Sequence[Path], against: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Each of ``run_dirs`` with the one of ``against`` that has its prompt and seed.

    Raises:
        InputError: a prompt and seed that only one of them has, or that one has twice; or as :func:`check_run`.
    """
    ours, theirs = (_by_prompt_and_seed(directories) for directories in (run_dirs, against))
    for key, directory in {**ours, **theirs}.items():
        if key not in ours or key not in theirs:
            other = "--against" if key in ours else "RUN_DIR"
            raise InputError(f"{directory}: no {other} has its prompt and seed, {key[0]!r} and {key[1]}; leave it out")
    return [(directory, theirs[key]) for key, directory in ours.items()]


def _by_prompt_and_seed(directories: Sequence[Path]) -> dict[tuple[str, int], Path]:
    found: dict[tuple[str, int], Path] = {}
    for directory in directories:
        config = check_run(directory)
        key = config.prompt, config.seed
        if key in found:
            raise InputError(f"{directory}: has the prompt and seed of {found[key]}; leave one of them out")
        found[key] = directory
    return found


def mesh_table(rows: Mapping[str, Sequence[MeshScore]], pairs: Sequence[tuple[MeshScore, MeshScore]] = ()) -> str:
    """One row per set of runs, means with 95 % intervals; and the differences of the ``pairs``, if there are any."""
    head = ["", "runs", "prompts", *OUTCOMES.values()]

    def cells(name: str, runs: int, estimates: Mapping[str, Estimate], sign: str = "") -> list[str]:
        prompts = max(estimate.count for estimate in estimates.values())
        return [name, str(runs), str(prompts), *(_cell(outcome, estimates[outcome], sign) for outcome in OUTCOMES)]

    lines = [cells(name, len(scores), summarize(scores)) for name, scores in rows.items()]
    if pairs:
        lines.append(cells("difference", len(pairs), differences(pairs), "+"))
    return table(head, lines)


def _cell(outcome: str, estimate: Estimate, sign: str) -> str:
    """A mean and its interval: shares in percent, IoU with three decimals."""
    if estimate.count == 0:
        return "-"
    share, digits = outcome.endswith("_right"), 3 if outcome.endswith("_iou") else 2
    mean, low, high = (
        f"{100 * value:{sign}.0f}" if share else f"{value:{sign}.{digits}f}"
        for value in (estimate.mean, estimate.low, estimate.high)
    )
    return f"{mean}{' %' if share else ''} [{low}, {high}]"
