"""Pictures as a generator: what is optimised is the picture itself, as the prior's latent code or as pixels."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from nfsd3d.cameras import Cameras
from nfsd3d.generators.base import ImageGenerator, Images, Latents


class ImageBatch(ImageGenerator):
    """B pictures, each on its own; a generator (see ``nfsd3d.generators.base.Generator``) that is the same from
    everywhere.

    Of ``kind`` "latent", they are latent codes [B,C,h,w], scaled as the prior's denoiser expects, and need no encoder;
    of kind "image", pixels [B,3,H,W] in [0,1].
    """

    def __init__(self, kind: Literal["latent", "image"], initial: Tensor) -> None:
        """Starts from ``initial`` [B,...]."""
        super().__init__()
        self.kind = kind
        self.values = Parameter(initial.clone())

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
        """The pictures, one for each camera; what else belongs to a view means nothing here.

        Raises ValueError unless there are as many cameras as pictures.
        """
        if len(cameras) != len(self.values):
            raise ValueError(f"{len(cameras)} cameras for {len(self.values)} pictures")
        return self.show()

    def show(self) -> Images | Latents:
        """All the pictures."""
        return Latents(self.values) if self.kind == "latent" else Images(self.values)

    @torch.no_grad()
    def update(self, step: int, rng: torch.Generator) -> None:
        """Brings pixels that the last step pushed out of [0,1] back to it (projected gradient descent)."""
        if self.kind == "image":
            self.values.clamp_(0, 1)

    def parameter_groups(self) -> dict[str, list[Parameter]]:
        """The pictures, by the name of their learning rate: their kind."""
        return {self.kind: [self.values]}
