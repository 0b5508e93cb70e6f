"""Cameras and rays: the conventions for axes, angles and units, and the sampling of training cameras.

The world is right-handed and z-up. Azimuth 0 is the object's front (+x) and grows towards +y; elevation grows
towards +z. A camera looks down its own -z axis, with +x to the right and +y up (OpenGL). Angles are radians.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nfsd3d.device import move
from nfsd3d.settings.cameras import CameraRanges


@dataclass(frozen=True)
class Rays:
    """N rays: ``origins`` [N,3] and unit ``directions`` [N,3], in world units."""

    origins: Tensor
    directions: Tensor

    def __len__(self) -> int:
        return self.origins.shape[0]


@dataclass(frozen=True)
class Cameras:
    """B pinhole cameras that look at ``target`` (the world's origin unless jittered).

    ``azimuth``, ``elevation``, ``fovy`` [B] in radians (``fovy`` is the vertical field of view), ``distance`` [B]
    from the origin, ``light`` [B,3] the position of a point light, ``target`` [B,3]; images are ``height`` x
    ``width`` pixels.
    """

    azimuth: Tensor
    elevation: Tensor
    distance: Tensor
    fovy: Tensor
    light: Tensor
    target: Tensor
    height: int
    width: int

    def __len__(self) -> int:
        return self.azimuth.shape[0]

    @property
    def positions(self) -> Tensor:
        """[B,3] camera centres."""
        return spherical(self.azimuth, self.elevation, self.distance)

    @property
    def rotations(self) -> Tensor:
        """[B,3,3] camera-to-world rotations; the columns are right, up and backward."""
        backward = torch.nn.functional.normalize(self.positions - self.target, dim=-1)
        # The horizontal tangent of the orbit is defined at the poles, where cross(up, backward) is not.
        tangent = torch.stack([-self.azimuth.sin(), self.azimuth.cos(), torch.zeros_like(self.azimuth)], dim=-1)
        right = torch.nn.functional.normalize(tangent - (tangent * backward).sum(-1, keepdim=True) * backward, dim=-1)
        return torch.stack([right, torch.linalg.cross(backward, right), backward], dim=-1)

    @property
    def camera_to_world(self) -> Tensor:
        """[B,4,4] camera-to-world matrices."""
        matrix = torch.eye(4, device=self.azimuth.device).repeat(len(self), 1, 1)
        matrix[:, :3, :3] = self.rotations
        matrix[:, :3, 3] = self.positions
        return matrix

    def rays(self) -> Rays:
        """One ray through the centre of every pixel, in the flattened order [B,H,W], row 0 at the top."""
        device = self.azimuth.device
        half = torch.tan(self.fovy / 2)[:, None, None]
        rows = 1 - (torch.arange(self.height, device=device) + 0.5) * 2 / self.height
        columns = ((torch.arange(self.width, device=device) + 0.5) * 2 / self.width - 1) * (self.width / self.height)
        shape = (len(self), self.height, self.width)
        local = torch.stack(
            [
                (half * columns[None, None, :]).expand(shape),
                (half * rows[None, :, None]).expand(shape),
                -torch.ones(shape, device=device),
            ],
            dim=-1,
        )
        world = torch.einsum("bij,bhwj->bhwi", self.rotations, local)
        directions = torch.nn.functional.normalize(world, dim=-1).reshape(-1, 3)
        origins = self.positions[:, None, :].expand(-1, self.height * self.width, -1).reshape(-1, 3)
        return Rays(origins, directions)

    def resized(self, height: int, width: int) -> "Cameras":
        """The same cameras with another image size."""
        return replace(self, height=height, width=width)

    def to(self, device: torch.device | str) -> "Cameras":
        """The same cameras with their tensors on ``device``."""
        return self._map(lambda tensor: move(tensor, device))

    def __getitem__(self, index: int | slice) -> "Cameras":
        """A subset of the cameras; an integer gives a batch of one."""
        if isinstance(index, int):
            index = slice(index, index + 1) if index != -1 else slice(-1, None)
        return self._map(lambda tensor: tensor[index])

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Cameras":
        tensors = (self.azimuth, self.elevation, self.distance, self.fovy, self.light, self.target)
        azimuth, elevation, distance, fovy, light, target = map(function, tensors)
        return Cameras(azimuth, elevation, distance, fovy, light, target, self.height, self.width)


def spherical(azimuth: Tensor, elevation: Tensor, distance: Tensor) -> Tensor:
    """[...,3] the point at these spherical coordinates (radians, world units)."""
    horizontal = elevation.cos() * distance
    return torch.stack([horizontal * azimuth.cos(), horizontal * azimuth.sin(), elevation.sin() * distance], dim=-1)


def sample_cameras(rng: torch.Generator, count: int, size: int, ranges: CameraRanges) -> Cameras:
    """``count`` random training cameras of ``size`` x ``size`` pixels, on the CPU.

    Azimuths are stratified over the batch, with one random offset, so that a batch covers all directions.
    """

    def uniform(bounds: tuple[float, float]) -> Tensor:
        return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(count, generator=rng)

    def radians(bounds: tuple[float, float]) -> tuple[float, float]:
        return math.radians(bounds[0]), math.radians(bounds[1])

    low, high = radians(ranges.azimuth_deg)
    strata = (torch.arange(count) + torch.rand(count, generator=rng)) / count
    azimuth = low + (high - low) * ((strata + torch.rand(1, generator=rng)) % 1.0)
    overhead = torch.rand(count, generator=rng) < ranges.overhead_probability
    elevation = torch.where(overhead, uniform(radians(ranges.overhead_deg)), uniform(radians(ranges.elevation_deg)))
    distance = uniform(ranges.distance)
    fovy = uniform(radians(ranges.fovy_deg))
    target = torch.randn(count, 3, generator=rng) * ranges.target_jitter
    return Cameras(
        azimuth, elevation, distance, fovy, sample_lights(rng, azimuth, elevation, ranges), target, size, size
    )


def sample_lights(rng: torch.Generator, azimuth: Tensor, elevation: Tensor, ranges: CameraRanges) -> Tensor:
    """[B,3] positions of a point light, in a cone around each camera's direction."""
    count = azimuth.shape[0]
    jitter = math.radians(ranges.light_jitter_deg)
    offset = (torch.rand(2, count, generator=rng) * 2 - 1) * jitter
    low, high = ranges.light_distance
    distance = low + (high - low) * torch.rand(count, generator=rng)
    return spherical(azimuth + offset[0], (elevation + offset[1]).clamp(-0.2, math.pi / 2), distance)


def orbit(
    count: int,
    size: int,
    elevation_deg: float | Sequence[float] = 15.0,
    distance: float = 2.5,
    fovy_deg: float = 45.0,
    start_deg: float = 0.0,
) -> Cameras:
    """``count`` cameras evenly around the object, starting at azimuth ``start_deg``, lit from behind the camera."""
    azimuth = math.radians(start_deg) + torch.arange(count) * (2 * math.pi / count)
    degrees = torch.as_tensor(elevation_deg, dtype=torch.float32).expand(count)
    elevation = torch.deg2rad(degrees).clone()
    ones = torch.ones(count)
    light = spherical(azimuth + 0.4, (elevation + 0.5).clamp(max=math.pi / 2), ones * 4.0)
    return Cameras(
        azimuth, elevation, ones * distance, ones * math.radians(fovy_deg), light, torch.zeros(count, 3), size, size
    )
