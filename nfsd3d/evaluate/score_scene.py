"""Scores of a scene against the ground truth of its prompt: content, geometry, views, sharpness and cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nfsd3d.api import Run, load_run
from nfsd3d.config.compose import Config
from nfsd3d.errors import InputError
from nfsd3d.evaluate.classifier.alignment import align, view_errors
from nfsd3d.evaluate.classifier.model import SIZE, Classifier
from nfsd3d.evaluate.geometry.iou import fit
from nfsd3d.evaluate.geometry.voxels import Solid, field_solid, mesh_solid, overlap
from nfsd3d.evaluate.ground_truth import composition_of
from nfsd3d.evaluate.sharpness import compare_appearance
from nfsd3d.generators.base import RenderOptions, SceneGenerator
from nfsd3d.generators.mesh.mesh import TexturedMesh
from nfsd3d.generators.nerf.nerf import NeRF
from nfsd3d.runs import checkpoints
from nfsd3d.settings.paths import user_path
from nfsd3d.shapes.world.grammar import Composition
from nfsd3d.shapes.world.objects import OBJECTS
from nfsd3d.shapes.world.render import render_views
from nfsd3d.train.build import viewing_cameras

VIEWS = 24
BACKGROUND = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class RunScore:
    """The score of a run.

    ``object``, ``color``, ``pattern``, ``retrieved`` and ``margin`` are those of all views together (see
    ``alignment.Alignment``); ``views_right`` is the share of single views whose object is right. ``iou`` is that of the
    field's solid with the true solid, ``mesh_iou`` that of its mesh, and ``ellipsoid_iou`` that of the best ellipsoid.
    ``source_iou`` compares the field's solid with its source's; it is None if there is no source or it was removed.
    ``view_error_deg``, the median over views, and ``janus`` are None for objects without a front. ``sharpness`` and
    ``contrast`` are ratios to true views. ``seconds``, ``evaluations`` (NFE) and ``memory_mb`` (peak) come from
    ``summary.json``, None where it lacks them.
    """

    prompt: str
    method: str
    seed: int
    steps: int
    status: str
    object: bool
    color: bool
    pattern: bool
    retrieved: bool
    margin: float
    views_right: float
    iou: float
    mesh_iou: float | None
    ellipsoid_iou: float
    source_iou: float | None
    view_error_deg: float | None
    janus: bool | None
    sharpness: float
    contrast: float
    seconds: float | None
    evaluations: int | None
    memory_mb: float | None


def score_run(run: Run, classifier: Classifier, *, mesh: bool = True) -> RunScore:
    """The scores of ``run`` at its checkpoint; ``mesh=False`` skips the mesh, which takes some seconds.

    Raises:
        InputError: the prompt is not one of the world of shapes.
    """
    truth = composition_of(run.config.prompt)
    images, opacity = views_of(run)
    prediction = classifier.classify(images)
    together = align(prediction.pooled(), [truth])
    apart = prediction.right([truth] * len(prediction))
    cameras = viewing_cameras(run.config, VIEWS, SIZE)
    background = torch.tensor(BACKGROUND)[None, :, None, None].expand(VIEWS, 3, SIZE, SIZE)
    true = render_views([truth] * VIEWS, cameras, background, ambient=0.6)
    appearance = compare_appearance(images, opacity, true.image, true.mask)
    near, far = run.config.cameras.distance
    radius = run.generator.radius
    try:
        solid = _solid_of(run.generator, (near + far) / 2)
    except InputError as reason:  # a mesh that is not closed
        raise InputError(f"{run.directory}: {reason}") from reason
    solid_fit = fit(solid, truth.object)
    error, janus = view_errors(prediction, cameras.azimuth) if OBJECTS[truth.object].has_front else (None, None)
    summary = run.summary
    return RunScore(
        prompt=run.config.prompt,
        method=summary.get("method", run.config.distill.method),
        seed=run.config.seed,
        steps=run.step,
        status=summary.get("status", "unfinished"),
        object=bool(together.object),
        color=bool(together.color),
        pattern=bool(together.pattern),
        retrieved=bool(together.retrieved),
        margin=float(together.margin),
        views_right=float(apart["object"].float().mean()),
        iou=solid_fit.iou,
        mesh_iou=_mesh_iou(run, truth, radius) if mesh else None,
        ellipsoid_iou=solid_fit.ellipsoid,
        source_iou=_source_iou(run.config, solid, (near + far) / 2),
        view_error_deg=error,
        janus=janus,
        sharpness=appearance.sharpness,
        contrast=appearance.contrast,
        seconds=summary.get("seconds"),
        evaluations=summary.get("network_evaluations"),
        memory_mb=summary.get("peak_memory_mb", {}).get("host"),
    )


def views_of(run: Run) -> tuple[Tensor, Tensor]:
    """[24,3,64,64] views around the object on a plain gray background, and their opacity [24,1,64,64]."""
    cameras = viewing_cameras(run.config, VIEWS, SIZE)
    background = torch.tensor(BACKGROUND).expand(VIEWS, 3)
    rendering = run.generator.render_in_chunks(cameras, RenderOptions(background))
    return rendering.image.clamp(0, 1).cpu(), rendering.opacity.cpu()


def _source_iou(config: Config, solid: Solid, distance: float) -> float | None:
    if config.source_run is None:
        return None
    folder = user_path(config.source_run)
    if not checkpoints.list_checkpoints(folder / "checkpoints"):
        return None
    source = load_run(folder)
    return overlap(solid, _solid_of(source.generator, distance))


def _solid_of(generator: SceneGenerator, distance: float) -> Solid:
    """What is solid: of a field by its views from ``distance``, of a mesh what it encloses."""
    if isinstance(generator, NeRF):
        return field_solid(generator, generator.radius, distance=distance)
    assert isinstance(generator, TexturedMesh)
    return mesh_solid(generator.surface().to_trimesh(), generator.radius)


def _mesh_iou(run: Run, truth: Composition, radius: float) -> float | None:
    try:
        mesh = run.mesh
    except InputError:  # no surface at the run's threshold
        return None
    return fit(mesh_solid(mesh, radius), truth.object).iou


@dataclass(frozen=True)
class Row:
    """The scores of several runs as one row of a table: shares and means, and the number of runs.

    Shares and ``janus`` are in [0,1]; ``margin`` and ``view_error_deg`` are medians; ``iou_gain`` is the mean of
    ``iou`` minus the ellipsoid's; ``done`` the share of runs that neither diverged nor failed.
    """

    runs: int
    object: float
    color: float
    pattern: float
    retrieved: float
    margin: float
    iou: float
    mesh_iou: float
    ellipsoid_iou: float
    iou_gain: float
    source_iou: float
    view_error_deg: float
    janus: float
    sharpness: float
    contrast: float
    done: float
    seconds: float
    evaluations: float
    memory_mb: float


def mean_of(scores: Sequence[object], name: str) -> float:
    """The mean of an attribute over the scores where it is not None; NaN without any."""
    values = _values(scores, name)
    return sum(values) / len(values) if values else math.nan


def _median_of(scores: Sequence[object], name: str) -> float:
    values = _values(scores, name)
    return float(torch.tensor(values).quantile(0.5)) if values else math.nan


def _values(scores: Sequence[object], name: str) -> list[float]:
    return [float(value) for score in scores if (value := getattr(score, name)) is not None]


_MEANS = (
    *("object", "color", "pattern", "retrieved", "iou", "mesh_iou", "ellipsoid_iou", "source_iou", "janus"),
    *("sharpness", "contrast", "seconds", "evaluations", "memory_mb"),
)
_MEDIANS = ("margin", "view_error_deg")


def summarize(scores: list[RunScore]) -> Row:
    """The row of one method; NaN where no run has a figure. Raises ValueError without runs."""
    if not scores:
        raise ValueError("no runs to summarize")
    means = {name: mean_of(scores, name) for name in _MEANS}
    return Row(
        runs=len(scores),
        **means,
        **{name: _median_of(scores, name) for name in _MEDIANS},
        iou_gain=means["iou"] - means["ellipsoid_iou"],
        done=sum(score.status == "done" for score in scores) / len(scores),
    )
