"""A batch of images as a generator: the optimised parameters are latent codes or pixels themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from nfsd3d.generators.base import DEFAULT_OPTIONS, ImageGenerator, Images, Latents, RenderOptions

if TYPE_CHECKING:
    from nfsd3d.views.cameras import Cameras


class ImageBatch(ImageGenerator):
    """B independent images; a generator (see ``base.Generator``) whose views do not depend on the camera.

    With ``kind`` "latent" they are latent codes [B,C,h,w], scaled as the prior's denoiser expects, and need no encoder;
    with kind "image" they are pixels [B,3,H,W] in [0,1].
    """

    def __init__(self, kind: Literal["latent", "image"], initial: Tensor) -> None:
        """Starts from ``initial`` [B,...]."""
        super().__init__()
        self.kind = kind
        self.values = Parameter(initial.clone())

    def render(
        self, cameras: Cameras, rng: torch.Generator | None = None, options: RenderOptions = DEFAULT_OPTIONS
    ) -> Images | Latents:
        """The images, one per camera; ``rng`` and ``options`` have no effect.

        Raises ValueError unless there are as many cameras as images.
        """
        if len(cameras) != len(self.values):
            raise ValueError(f"{len(cameras)} cameras for {len(self.values)} images")
        return self.show()

    def show(self) -> Images | Latents:
        """All the images."""
        return Latents(self.values) if self.kind == "latent" else Images(self.values)

    @torch.no_grad()
    def update(self, step: int, rng: torch.Generator) -> None:
        """Clamps pixels to [0,1] after the last step's update (projected gradient descent)."""
        if self.kind == "image":
            self.values.clamp_(0, 1)

    def parameter_groups(self) -> dict[str, list[Parameter]]:
        """The images, by the name of their learning rate: their kind."""
        return {self.kind: [self.values]}
