"""A prior whose networks see a few rows at a time."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nfsd3d.prior.base import Prior
    from nfsd3d.prior.schedule import NoiseSchedule


@dataclass(frozen=True)
class ChunkedPrior:
    """``prior``, whose networks see at most ``unet_batch_size`` rows together (None: all of them); a Prior itself.

    With ``checkpoint_encoder`` every :meth:`encode` is checkpointed. Evaluations are counted by ``prior``.
    """

    prior: Prior
    unet_batch_size: int | None
    checkpoint_encoder: bool

    @property
    def evaluations(self) -> int:
        """See :class:`nfsd3d.prior.base.Prior`, as for all that follows."""
        return self.prior.evaluations

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule."""
        return self.prior.schedule

    @property
    def image_size(self) -> int:
        """Side in pixels of the encoder's images."""
        return self.prior.image_size

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""
        return self.prior.latent_shape

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.prior.device

    def embed(self, prompts: list[str]) -> Tensor:
        """[N,L,D] text embeddings."""
        return self.prior.embed(prompts)

    def free_text_encoder(self) -> None:
        """Gives the text encoder's memory back."""
        self.prior.free_text_encoder()

    def encode(self, image: Tensor, *, checkpoint: bool = False) -> Tensor:
        """[B,C,h,w] latents of images [B,3,H,W]; differentiable."""
        checkpoint = checkpoint or self.checkpoint_encoder
        return torch.cat([self.prior.encode(image[part], checkpoint=checkpoint) for part in self._parts(len(image))])

    def decode(self, z: Tensor) -> Tensor:
        """[B,3,image_size,image_size] images of latents [B,C,h,w]; no gradient."""
        return torch.cat([self.prior.decode(z[part]) for part in self._parts(len(z))])

    def predict_eps(self, z_t: Tensor, t: Tensor, context: Tensor, *, at_most: int | None = None) -> Tensor:
        """[N,C,h,w] predicted noise; no gradient."""
        most = min((limit for limit in (at_most, self.unet_batch_size) if limit is not None), default=None)
        predict, rows = self.prior.predict_eps, parts(len(z_t), most)
        return torch.cat([predict(z_t[part], t[part], context[part], at_most=most) for part in rows])

    def _parts(self, count: int) -> list[slice]:
        return parts(count, self.unet_batch_size)


def parts(count: int, at_once: int | None) -> list[slice]:
    """``count`` rows (at least one) as slices of ``at_once`` rows, the last of the rest; None: one slice."""
    return [slice(first, last) for first, last in pairwise([*range(0, count, at_once or count), count])]


def in_chunks(prior: Prior, unet_batch_size: int | None, checkpoint_encoder: bool) -> Prior:
    """``prior`` with its networks' work split up; itself where there is nothing to split."""
    if unet_batch_size is None and not checkpoint_encoder:
        return prior
    return ChunkedPrior(prior, unet_batch_size, checkpoint_encoder)
