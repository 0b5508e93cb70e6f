"""A prior whose networks are called on chunks of a batch."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nfsd3d.prior.base import WrappedPrior, predict_x0

if TYPE_CHECKING:
    from nfsd3d.context import Context
    from nfsd3d.prior.base import Prior


class ChunkedPrior(WrappedPrior):
    """``prior`` with at most ``unet_batch_size`` batch entries per call of its networks (None: all of them).

    With ``checkpoint_encoder`` every :meth:`encode` is checkpointed.
    """

    def __init__(self, prior: Prior, unet_batch_size: int | None, checkpoint_encoder: bool) -> None:
        super().__init__(prior)
        self._unet_batch_size = unet_batch_size
        self._checkpoint_encoder = checkpoint_encoder

    def encode(self, image: Tensor, *, checkpoint: bool = False) -> Tensor:
        """[B,C,h,w] latents of images [B,3,H,W]; differentiable."""
        checkpoint = checkpoint or self._checkpoint_encoder
        return torch.cat([self._prior.encode(image[part], checkpoint=checkpoint) for part in self._slices(len(image))])

    def decode(self, z: Tensor) -> Tensor:
        """[B,3,image_size,image_size] images of latents [B,C,h,w]; no gradient."""
        return torch.cat([self._prior.decode(z[part]) for part in self._slices(len(z))])

    def predict_eps(self, z_t: Tensor, t: Tensor, context: Context, *, at_most: int | None = None) -> Tensor:
        """[N,C,h,w] predicted noise; no gradient."""
        most = min((limit for limit in (at_most, self._unet_batch_size) if limit is not None), default=None)
        predict, chunks = self._prior.predict_eps, slices(len(z_t), most)
        return torch.cat([predict(z_t[part], t[part], context[part], at_most=most) for part in chunks])

    def predict_x0(self, z_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """[N,C,h,w] predicted clean latents; no gradient."""
        chunks = slices(len(z_t), self._unet_batch_size)
        return torch.cat([predict_x0(self._prior, z_t[part], t[part], context[part]) for part in chunks])

    def _slices(self, count: int) -> list[slice]:
        return slices(count, self._unet_batch_size)


def slices(count: int, at_once: int | None) -> list[slice]:
    """Slices of ``at_once`` that cover ``count`` batch entries (at least one); None: one slice."""
    return [slice(first, last) for first, last in pairwise([*range(0, count, at_once or count), count])]


def in_chunks(prior: Prior, unet_batch_size: int | None, checkpoint_encoder: bool) -> Prior:
    """``prior`` with its networks called on chunks; ``prior`` itself if there is nothing to split."""
    if unet_batch_size is None and not checkpoint_encoder:
        return prior
    return ChunkedPrior(prior, unet_batch_size, checkpoint_encoder)
