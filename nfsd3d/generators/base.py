"""The generator g(theta): a differentiable renderer of images or latents that the prior can score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.nn import Parameter

if TYPE_CHECKING:
    from nfsd3d.views.cameras import Cameras


SHADINGS = ("albedo", "lambertian", "textureless", "normals")
"""The ``shading`` of :class:`RenderOptions`: see ``nerf.shade``."""


@dataclass(frozen=True)
class RenderOptions:
    """How a generator renders a view. A batch of images ignores all of it: it has no background, light or geometry."""

    background: Tensor | None = None
    """[B,3] in [0,1]: replaces the scene's own background in each view."""
    replaced: Tensor | None = None
    """[B] bool: the views in which ``background`` applies; None for all. On the CPU, so that testing it needs no
    host-device synchronisation."""
    shading: str = "albedo"
    """One of :data:`SHADINGS`."""
    ambient: float = 0.1
    """Ambient light in [0,1], besides the camera's point light; only used by shaded views."""
    normals: bool = False
    """Whether to compute normals where ``shading`` does not need them."""
    normals_above: float = 1e-3
    """Samples of a smaller weight in the view have no normal, which costs several evaluations of the field."""
    rays_per_chunk: int | None = None
    """Bounds the memory: rays that are composited together, and recomputed together in the backward pass. None for
    all. Image and gradient are equal up to floating-point summation order."""


DEFAULT_OPTIONS = RenderOptions()


@dataclass(frozen=True)
class Latents:
    """B images as latent codes: ``latent`` [B,C,h,w], scaled as the prior's denoiser expects; differentiable."""

    latent: Tensor


@dataclass(frozen=True)
class Images:
    """B images: ``image`` [B,3,H,W] in [0,1]; differentiable."""

    image: Tensor


@dataclass(frozen=True)
class Rendering(Images):
    """B rendered views of H x W pixels; everything but ``samples_per_ray`` is differentiable.

    ``image`` [B,3,H,W] in [0,1], over the background; ``opacity`` [B,1,H,W] in [0,1]. ``depth`` [B,1,H,W] is the
    expected distance from the camera in world units, and ``depth_variance`` [B,1,H,W] its variance within the pixel.
    Both are meaningful only where ``opacity`` is well above 0; an empty pixel has the distance between the camera and
    the world's origin, and variance 0. ``samples_per_ray`` is the mean over all rays, a scalar tensor because reading
    it as a number synchronises with a GPU.

    Present if normals were computed: ``normal`` [B,3,H,W], world axes, of length at most ``opacity``; and, with
    gradients enabled, ``orientation`` [B,1,H,W], the sum of weight * max(n.d, 0)^2 over samples with detached weights,
    which penalises visible normals that face away (Ref-NeRF, arXiv 2112.03907, eq. 11). ``albedo`` [B,3,H,W], over
    black, is present if the image is shaded.
    """

    opacity: Tensor
    depth: Tensor
    depth_variance: Tensor
    normal: Tensor | None
    orientation: Tensor | None
    albedo: Tensor | None
    samples_per_ray: Tensor
    shape_penalty: Tensor | None = None
    """A scalar to add to the loss: what the generator's own regularisers say of its shape."""


class Generator(Protocol):
    """What the training loop needs of a generator."""

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        ...

    def render(
        self, cameras: Cameras, rng: torch.Generator | None = None, options: RenderOptions = DEFAULT_OPTIONS
    ) -> Images | Latents:
        """The view of each camera: a ``Rendering`` of a scene, or the images of a batch.

        Random only if ``rng`` (on the CPU) is given.
        """
        ...

    def update(self, step: int, rng: torch.Generator) -> None:
        """Work before training step ``step`` other than the optimiser's."""
        ...

    def parameter_groups(self) -> dict[str, list[Parameter]]:
        """Parameters by the name of their learning rate."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a checkpoint has to contain."""
        ...

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> object:
        """Restores what ``state_dict`` returned."""
        ...


class ImageGenerator(nn.Module, ABC):
    """A `Generator` whose results are images, the same from every camera; abstract."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def render(
        self, cameras: Cameras, rng: torch.Generator | None = None, options: RenderOptions = DEFAULT_OPTIONS
    ) -> Images | Latents:
        """The images, one per camera; ``rng`` and ``options`` have no effect."""
        return self.show()

    @abstractmethod
    def show(self) -> Images | Latents:
        """All images."""

    def update(self, step: int, rng: torch.Generator) -> None:
        """Nothing."""

    @abstractmethod
    def parameter_groups(self) -> dict[str, list[Parameter]]:
        """Parameters by the name of the learning rate that they train with."""


class SceneGenerator(nn.Module, ABC):
    """A `Generator` whose results are views of one scene, and a mesh; abstract."""

    sized_by_state: frozenset[str] = frozenset()
    """The tensors of a state whose sizes the settings do not decide."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the parameters."""

    @property
    @abstractmethod
    def radius(self) -> float:
        """Half-width in world units of the cube that holds the object."""

    @abstractmethod
    def render(
        self, cameras: Cameras, rng: torch.Generator | None = None, options: RenderOptions = DEFAULT_OPTIONS
    ) -> Rendering:
        """The view of each of the B cameras; differentiable."""

    @abstractmethod
    def render_in_chunks(
        self,
        cameras: Cameras,
        options: RenderOptions = DEFAULT_OPTIONS,
        on_chunk: Callable[[], None] = lambda: None,
    ) -> Rendering:
        """``render`` of many or large views without gradient; ``on_chunk`` is called now and then, and may raise."""

    @abstractmethod
    def update(self, step: int, rng: torch.Generator) -> None:
        """Work before training step ``step`` other than the optimiser's."""

    @abstractmethod
    def parameter_groups(self) -> dict[str, list[Parameter]]:
        """Parameters by the name of the learning rate that they train with."""
