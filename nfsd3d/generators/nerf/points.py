"""Encoded points of the field, in the order in which they were evaluated."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nfsd3d.generators.nerf.autograd import Context


@dataclass(frozen=True)
class EncodedPoints:
    """N points in the unit cube and their ``features`` [N,F].

    ``order`` [N] int64: row n of ``inside`` [N,3] and ``features`` is the point ``order[n]`` of those that were asked
    for; None: they are in that order.
    """

    inside: Tensor
    features: Tensor
    order: Tensor | None = None

    def in_place(self, values: Tensor) -> Tensor:
        """[N,...] a row of ``values`` [N,...] for each point, in the order that was asked for; differentiable."""
        return values if self.order is None else back_in_place(values, self.order)

    def where(self, kept: Tensor, count: int) -> "EncodedPoints":
        """The ``count`` points that are ``kept`` [N] bool, in the same order; does not synchronise with a GPU."""
        if self.order is None:
            rows, order = kept.nonzero_static(size=count)[:, 0], None
        else:
            rows = kept[self.order].nonzero_static(size=count)[:, 0]
            order = (kept.cumsum(0) - 1)[self.order[rows]]
        # Stored feature by feature (strides 1, N), as the network reads them; rows ascend, so that reads are coalesced.
        return EncodedPoints(self.inside[rows], self.features.T.index_select(1, rows).T, order)


def back_in_place(values: Tensor, order: Tensor) -> Tensor:
    """[N,...] the tensor x with x[``order``] = ``values`` [N,...], for a permutation [N]; differentiable."""
    return _BackInPlace.apply(values, order)


class _BackInPlace(torch.autograd.Function):
    """A permutation's forward and backward are copies; torch's indexing would add, in case an index repeats."""

    @staticmethod
    def forward(ctx: Context, values: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return torch.empty_like(values).index_copy_(0, order, values)

    @staticmethod
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors
        return gradient[order], None
