"""What a program shows of a mesh, compared with the project's own drawing.

Every program puts its camera at the same place of a *stage*: axes as in glTF, x to the object's left, y up, z to the
front, in units of the longest side of the mesh's bounding box, around the box's middle. So a picture says which way the
program turned the object (one of 24 rotations), and whether its colours are right; the size comes from the program.
"""

import itertools
import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from nfsd3d.export.texture.rasterize import draw
from nfsd3d.generators.mesh.surface import SurfaceMesh
from nfsd3d.views.cameras import Cameras, orbit
from nfsd3d.visualize.image_grid import Image

PLACE = (1.2, 0.9, 2.2)
"""Where the camera stands on the stage; it looks at the origin."""

FIELD_OF_VIEW_DEG = 45.0
SIZE = 256
"""Pixels per side of the pictures."""

UNDECIDED = 0.02
"""Rotations whose pictures are worse by less than this, of 1, than the best one's are as likely as it."""

GREY = 128
"""Background of the pictures, of 255."""

AXES = ("x", "y", "z")
# World axes (front, left, up) to the stage's (left, up, front).
TO_STAGE = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]], np.float32)


@dataclass(frozen=True)
class Seen:
    """A program's picture beside the project's own.

    ``up`` and ``front``: the axes of the stage that the object's up and front lie along, such as "+y" and "+z", which
    are right. ``color_error``: the mean difference of red, green and blue of 255, where both show the object.
    ``silhouette_iou`` of the two outlines. ``pictures`` [H,2W,3]: the program's, and the project's.
    """

    up: str
    front: str
    color_error: float
    silhouette_iou: float
    pictures: Image


def camera(size: int = SIZE) -> Cameras:
    """The stage's camera, in world axes."""
    left, up, front = PLACE
    away = math.hypot(left, up, front)
    azimuth = math.degrees(math.atan2(left, front))
    return orbit(1, size, math.degrees(math.asin(up / away)), away, FIELD_OF_VIEW_DEG, azimuth)


def look(picture: NDArray[np.uint8], mesh: SurfaceMesh, *, colored: bool = True) -> Seen:
    """Compares a program's ``picture`` [H,W,4] (with alpha) with drawings of ``mesh`` in world axes.

    Without ``colored`` only outlines decide which way up the object is, and the colours' difference means nothing.
    """
    color, shown = picture[..., :3].astype(np.float32), picture[..., 3] > 127
    found: list[tuple[float, NDArray, float, float, NDArray]] = []
    for turn in rotations():
        image, there = draw(_on_stage(mesh, turn), camera(len(picture)))
        both = shown & there
        iou = float(both.sum() / max((shown | there).sum(), 1))
        error = float(np.abs(color[both] - image[both] * 255).mean()) if both.any() else 255.0
        found.append((1 - iou + (error / 255 if colored else 0), turn, error, iou, _on_grey(image * 255, there)))
    least = min(score for score, *_ in found)
    _, turn, error, iou, drawn = next(row for row in found if row[0] <= least + UNDECIDED)
    up, front = (_axis(turn @ TO_STAGE @ axis) for axis in ((0, 0, 1), (1, 0, 0)))
    return Seen(up, front, round(error, 2), round(iou, 4), np.concatenate([_on_grey(color, shown), drawn], axis=1))


def drawing(mesh: SurfaceMesh) -> NDArray[np.uint8]:
    """The project's own picture [H,W,4] of a mesh in world axes, as a program's."""
    image, shown = draw(_on_stage(mesh, np.eye(3, dtype=np.float32)), camera())
    return np.concatenate([(image * 255).round(), shown[..., None] * 255], axis=-1).astype(np.uint8)


def middle_and_side(points: NDArray) -> tuple[NDArray, float]:
    """The middle of the bounding box of ``points`` [N,3], and its longest side."""
    low, high = points.min(0), points.max(0)
    return (low + high) / 2, float((high - low).max())


@cache
def rotations() -> list[NDArray[np.float32]]:
    """The 24 rotations [3,3] that map axes to axes: first none, then those of up and front exchanged, then the rest."""
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            matrix = np.zeros((3, 3), np.float32)
            matrix[range(3), order] = signs
            if np.linalg.det(matrix) > 0:
                found.append(matrix)
    return sorted(found, key=lambda matrix: -float(np.trace(matrix)))


def _on_stage(mesh: SurfaceMesh, turn: NDArray) -> SurfaceMesh:
    middle, side = middle_and_side(mesh.vertices)
    matrix = (TO_STAGE.T @ turn @ TO_STAGE).astype(np.float32)
    return replace(mesh, vertices=np.ascontiguousarray((mesh.vertices - middle) / side @ matrix.T))


def _axis(direction: NDArray) -> str:
    index = int(np.abs(direction).argmax())
    return ("+" if direction[index] > 0 else "-") + AXES[index]


def _on_grey(color: NDArray, shown: NDArray[np.bool_]) -> Image:
    return np.where(shown[..., None], color, GREY).round().astype(np.uint8)
