"""The generator g(theta): whatever renders an image, or a latent, that the prior can classifier."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from nfsd3d.cameras import Cameras


@dataclass(frozen=True)
class Latents:
    """B pictures as the prior's latent codes: ``latent`` [B,C,h,w], scaled as its denoiser expects; differentiable."""

    latent: Tensor


@dataclass(frozen=True)
class Images:
    """B pictures, of whatever: ``image`` [B,3,H,W] in [0,1]; differentiable."""

    image: Tensor


@dataclass(frozen=True)
class Rendering(Images):
    """What B cameras of H x W pixels see; everything but ``samples_per_ray`` is differentiable.

    ``image`` [B,3,H,W] in [0,1], over the background; ``opacity`` [B,1,H,W] in [0,1]; ``depth`` [B,1,H,W] the mean
    distance from the camera at which light is stopped, in world units, and ``depth_variance`` [B,1,H,W] its variance
    within the pixel (both mean something only where ``opacity`` is not near 0; an empty pixel has the distance
    between the camera and the world's origin, and variance 0). ``samples_per_ray`` is the mean over all rays, a scalar
    (a tensor like the others, because reading a number makes the program wait for a GPU).

    Present when normals were computed: ``normal`` [B,3,H,W], world axes, of length at most ``opacity``; and
    ``orientation`` [B,1,H,W], how far normals of visible samples face away: the sum of weight * max(n.d, 0)^2, weights
    detached (Ref-NeRF, arXiv 2112.03907, eq. 11). ``albedo`` [B,3,H,W], over black, is present when the image is
    shaded.
    """

    opacity: Tensor
    depth: Tensor
    depth_variance: Tensor
    normal: Tensor | None
    orientation: Tensor | None
    albedo: Tensor | None
    samples_per_ray: Tensor


class Generator(Protocol):
    """What the training loop needs of a generator."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        ...

    def render(
        self,
        cameras: Cameras,
        rng: torch.Generator | None = None,
        *,
        background: Tensor | None = None,
        replaced: Tensor | None = None,
        shading: str = "albedo",
        ambient: float = 0.1,
        normals: bool = False,
        rays_per_chunk: int | None = None,
    ) -> Images | Latents:
        """The view of each camera; random only where ``rng`` (on the CPU) is given. See ``nerf.NeRF.render``.

        A scene gives a Rendering. Pictures are the same from everywhere, and have neither background nor light, and
        are there at once.
        """
        ...

    def update(self, step: int, rng: torch.Generator) -> None:
        """What has to be done before training step ``step`` besides the optimiser's work."""
        ...

    def parameter_groups(self) -> dict[str, list[Parameter]]:
        """Parameters by the name of the learning rate that they train with."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a checkpoint has to keep."""
        ...

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> object:
        """Restores what ``state_dict`` gave."""
        ...


class ImageGenerator(nn.Module, ABC):
    """A `Generator` whose results are images, the same from every camera; abstract."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def render(
        self,
        cameras: Cameras,
        rng: torch.Generator | None = None,
        *,
        background: Tensor | None = None,
        replaced: Tensor | None = None,
        shading: str = "albedo",
        ambient: float = 0.1,
        normals: bool = False,
        rays_per_chunk: int | None = None,
    ) -> Images | Latents:
        """The images, one for each camera; what else belongs to a view has no effect."""
        return self.show()

    @abstractmethod
    def show(self) -> Images | Latents:
        """All images."""

    def update(self, step: int, rng: torch.Generator) -> None:
        """Nothing."""

    @abstractmethod
    def parameter_groups(self) -> dict[str, list[Parameter]]:
        """Parameters by the name of the learning rate that they train with."""
