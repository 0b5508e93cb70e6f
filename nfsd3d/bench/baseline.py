"""The baseline of a benchmark: the same method with the settings of a common implementation."""

from dataclasses import replace

import torch
from torch import Tensor

from nfsd3d.distill.methods import Method
from nfsd3d.generators.nerf.nerf import NeRF
from nfsd3d.prior.base import WrappedPrior
from nfsd3d.prior.diffusers_prior import DiffusersPrior
from nfsd3d.train.build import Parts

ALPHA = 0.01
"""Opacity of a sample below which the baseline does not evaluate its colour."""


def as_baseline(parts: Parts, precision: torch.dtype) -> Parts:
    """The same method with a common implementation's choices; the networks themselves change to ``precision``.

    No compilation and no chunks. All predictions for every view in one call. Each encoding is followed by an unused
    decoding. Samples are pruned by their opacity, which evaluates all densities once more.
    """
    assert isinstance(parts.prior, DiffusersPrior)
    assert isinstance(parts.generator, NeRF)
    prior = _BaselinePrior(parts.prior.in_precision(precision))
    nerf = parts.generator
    nerf.settings, nerf.keeps_encodings = replace(nerf.settings, prune_alpha=ALPHA), False
    method = _for_every_view(parts.distillation.method)
    return replace(parts, prior=prior, distillation=replace(parts.distillation, method=method))


def _for_every_view(method: Method) -> Method:
    return replace(method, active={}, then=None if method.then is None else _for_every_view(method.then))


class _BaselinePrior(WrappedPrior):
    """A prior that decodes after every encoding; final."""

    def encode(self, image: Tensor, *, checkpoint: bool = False) -> Tensor:
        z = self._prior.encode(image)
        self._prior.decode(z.detach())
        return z
