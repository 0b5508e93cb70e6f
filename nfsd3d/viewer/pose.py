"""Cameras from the poses of viser, which has OpenCV's axes: a camera looks along its +z, with +y down."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from nfsd3d.settings.cameras import CameraRanges
from nfsd3d.views.cameras import Cameras

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Pose:
    """Where a camera is and looks: ``position`` and ``look_at`` in world units, vertical ``fov`` in radians."""

    position: Vector
    look_at: Vector
    fov: float


def cameras_of(pose: Pose, height: int, width: int) -> Cameras:
    """One camera of ``height`` x ``width`` pixels at a ``pose``, upright: viser's orbit never tilts."""
    x, y, z = pose.position
    horizontal = math.hypot(x, y)
    angles = [math.atan2(y, x), math.atan2(z, horizontal), math.hypot(horizontal, z), pose.fov]
    azimuth, elevation, distance, fovy = (torch.tensor([value], dtype=torch.float32) for value in angles)
    position = torch.tensor([pose.position], dtype=torch.float32)
    target = torch.tensor([pose.look_at], dtype=torch.float32)
    return Cameras(azimuth, elevation, distance, fovy, position, target, height, width)


def start_pose(distance: float, fovy: float, azimuth_deg: float = 30.0, elevation_deg: float = 20.0) -> Pose:
    """A pose that looks at the world's origin from ``distance`` world units; ``fovy`` in radians."""
    azimuth, elevation = math.radians(azimuth_deg), math.radians(elevation_deg)
    flat = distance * math.cos(elevation)
    position = (flat * math.cos(azimuth), flat * math.sin(azimuth), distance * math.sin(elevation))
    return Pose(position, (0.0, 0.0, 0.0), fovy)


def pose_of_training(ranges: CameraRanges) -> Pose:
    """The start pose at the mean distance and field of view of the training's cameras."""
    distance, fovy_deg = ranges.middle
    return start_pose(distance, math.radians(fovy_deg))


def fitted_fov(fov: float, aspect: float) -> float:
    """The vertical field of view (radians) with which a window narrower than high shows the width of a square one."""
    return fov if aspect >= 1 else 2 * math.atan(math.tan(fov / 2) / aspect)
