"""Agreement of an exported mesh with the true object of its prompt: unlit views, silhouettes, volume and content."""

import os
from dataclasses import dataclass
from pathlib import Path

from nfsd3d.api import load_run
from nfsd3d.config.compose import load_run_config
from nfsd3d.config.schema import Config
from nfsd3d.errors import InputError
from nfsd3d.evaluate.classifier.alignment import align
from nfsd3d.evaluate.classifier.model import SIZE as CLASSIFIED_SIZE
from nfsd3d.evaluate.classifier.model import Classifier
from nfsd3d.evaluate.ground_truth import composition_of
from nfsd3d.evaluate.score_scene import VIEWS as CLASSIFIED_VIEWS
from nfsd3d.evaluate.tables import yes
from nfsd3d.evaluate.true_place import TruePlace, Views, fit_place, mesh_views, psnr, silhouette_iou, true_views
from nfsd3d.export.formats.read_glb import read_glb
from nfsd3d.generators.mesh.surface import SurfaceMesh
from nfsd3d.settings.paths import user_path
from nfsd3d.train.build import viewing_cameras

VIEWS, SIZE = 8, 128
"""Compared views around the object, and their height and width in pixels."""

GLB = Path("mesh/model.glb")
"""The mesh of a run, in its directory."""


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
