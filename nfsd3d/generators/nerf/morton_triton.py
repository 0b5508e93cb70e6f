"""Points in the order of a space-filling curve, in Triton: neighbours in space become neighbours in memory."""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nfsd3d.generators.nerf.launch_triton import INTERPRETED, check_device, launch

BITS = 10
"""Of a coordinate that the order looks at: cells a thousandth of the cube wide are told apart."""
BLOCK = 4096 if INTERPRETED else 512


def space_order(positions: Tensor) -> Tensor:
    """[N] int64: positions [N,3] in the unit cube taken in this order follow Morton's curve through cells of it.

    Raises InputError for tensors that are not on a GPU, unless Triton interprets.
    """
    check_device(positions, "backend.field")
    positions, count = positions.contiguous(), positions.shape[0]
    codes = torch.empty(count, dtype=torch.int32, device=positions.device)
    if count:
        launch(_codes, (triton.cdiv(count, BLOCK),), positions, codes, count, SIDE=2**BITS, BLOCK=BLOCK)
    return codes.argsort()


def in_space_order(function: Callable[[Tensor], Tensor], positions: Tensor) -> Tensor:
    """[N,...] ``function`` of positions [N,3] in the unit cube, which it meets in their order in space.

    Differentiable, but not to the positions.
    """
    order = space_order(positions)
    return back_in_place(function(positions.detach()[order]), order)


def back_in_place(values: Tensor, order: Tensor) -> Tensor:
    """[N,...]: the tensor of which ``values`` [N,...] are what lies at ``order`` [N], a permutation; differentiable."""
    return _BackInPlace.apply(values, order)


class _BackInPlace(torch.autograd.Function):
    """Both directions of a permutation are copies; torch's own indexing adds, in case that an index is there twice."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return torch.empty_like(values).index_copy_(0, order, values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors
        return gradient[order], None


@triton.jit
def _spread(bits):  # type: ignore[no-untyped-def]
    """The 10 lowest bits, with two places between each and the next."""
    bits = (bits | (bits << 16)) & 0x030000FF
    bits = (bits | (bits << 8)) & 0x0300F00F
    bits = (bits | (bits << 4)) & 0x030C30C3
    return (bits | (bits << 2)) & 0x09249249


@triton.jit
def _cell(coordinate, SIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The cell of a coordinate; what is outside, or no number, goes to a cell at the border."""
    scaled = coordinate * SIDE
    scaled = tl.where(scaled > 0, scaled, 0.0)
    return tl.where(scaled < SIDE - 1, scaled, SIDE - 1.0).to(tl.int32)


@triton.jit(do_not_specialize=["count"])
def _codes(positions, codes, count, SIDE: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = n < count
    x = _cell(tl.load(positions + 3 * n, mask=inside, other=0.0), SIDE)
    y = _cell(tl.load(positions + 3 * n + 1, mask=inside, other=0.0), SIDE)
    z = _cell(tl.load(positions + 3 * n + 2, mask=inside, other=0.0), SIDE)
    tl.store(codes + n, _spread(x) | (_spread(y) << 1) | (_spread(z) << 2), mask=inside)
