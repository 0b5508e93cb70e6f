"""Volume rendering kernels in Triton, for CUDA: the formulas of ``compositing``, forward and backward.

Here are the weights along a ray; the sums of a ray's samples are in ``triton_sums``, whose conventions hold here too.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from nfsd3d.generators.nerf.autograd import Context
from nfsd3d.generators.nerf.compositing.triton_sums import STEPS, TILE, accumulate, composite
from nfsd3d.generators.nerf.launch_triton import check_device, launch
from nfsd3d.generators.nerf.sampling.sampling import RaySamples

__all__ = ["accumulate", "composite", "contributes", "render_weights"]

# Terms of the series of 1 - exp(-x): below SMALL, further terms are smaller than the rounding error.
TERMS = {torch.float32: 5, torch.float64: 11}
SMALL = tl.constexpr(0.1)


def render_weights(density: Tensor, samples: RaySamples) -> Tensor:
    """[S] each sample's weight in its ray's colour; see ``compositing.render_weights``.

    Differentiable with respect to ``density`` only. Raises InputError for tensors that are not on a GPU, except in
    Triton's interpreter.
    """
    check_device(density, "backend.sampler")
    return _RenderWeights.apply(density, samples.t_starts, samples.t_ends, samples.offsets)


def contributes(density: Tensor, least_density: Tensor, samples: RaySamples, most_depth: float) -> Tensor:
    """[S] bool; see ``compositing.contributes``. Samples behind the optical depth ``most_depth`` are hidden.

    Raises InputError for tensors that are not on a GPU, except in Triton's interpreter.
    """
    check_device(density, "backend.sampler")
    kept = torch.empty_like(density, dtype=torch.bool)
    n_rays, rays = samples.n_rays, TILE // STEPS
    launch(
        _contributes,
        (triton.cdiv(n_rays, rays),),
        density.contiguous(),
        samples.t_starts.contiguous(),
        samples.t_ends.contiguous(),
        samples.offsets.contiguous(),
        least_density,
        most_depth,
        kept,
        n_rays,
        RAYS=rays,
        STEPS=STEPS,
    )
    return kept


class _RenderWeights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, density: Tensor, t_starts: Tensor, t_ends: Tensor, offsets: Tensor) -> Tensor:
        density, t_starts, t_ends = density.contiguous(), t_starts.contiguous(), t_ends.contiguous()
        n_rays = offsets.shape[0] - 1
        weights, behind = torch.empty_like(density), torch.empty_like(density)
        rays = TILE // STEPS
        launch(
            _weights,
            (triton.cdiv(n_rays, rays),),
            density,
            t_starts,
            t_ends,
            offsets,
            weights,
            behind,
            n_rays,
            RAYS=rays,
            STEPS=STEPS,
            TERMS=TERMS[density.dtype],
        )
        ctx.save_for_backward(t_starts, t_ends, offsets, weights, behind)
        return weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        t_starts, t_ends, offsets, weights, behind = ctx.saved_tensors
        n_rays = offsets.shape[0] - 1
        to_density = torch.empty_like(weights)
        rays = TILE // STEPS
        launch(
            _weights_backward,
            (triton.cdiv(n_rays, rays),),
            gradient.contiguous(),
            t_starts,
            t_ends,
            offsets,
            weights,
            behind,
            to_density,
            n_rays,
            RAYS=rays,
            STEPS=STEPS,
        )
        return to_density, None, None, None


# --- kernels ---------------------------------------------------------------------------------------------------------
# The numbers of rays and samples vary between calls; "do_not_specialize" avoids a compilation for each value. Samples
# are counted in int64.


@triton.jit
def _bounds(offsets, ray, n_rays):  # type: ignore[no-untyped-def]
    """[RAYS, 1] each ray's first sample and the one after its last, and the longest ray's number of samples."""
    begin = tl.load(offsets + ray, mask=ray < n_rays, other=0)
    end = tl.load(offsets + ray + 1, mask=ray < n_rays, other=0)
    return begin[:, None], end[:, None], tl.max(end - begin, axis=0).to(tl.int32)


@triton.jit
def _optical_depth(density, t_starts, t_ends, at, inside):  # type: ignore[no-untyped-def]
    """Optical depth, density times length, of the samples ``at``; zero outside."""
    length = tl.load(t_ends + at, mask=inside, other=0.0) - tl.load(t_starts + at, mask=inside, other=0.0)
    return tl.load(density + at, mask=inside, other=0.0) * length


@triton.jit
def _opacity(depth, TERMS: tl.constexpr):  # type: ignore[no-untyped-def]
    """1 - exp(-depth), by its series for small depths, where the difference would cancel."""
    is_small = tl.abs(depth) < SMALL
    small = tl.where(is_small, depth, 0.0)
    series = 1 - small * (1 / (TERMS + 1))
    for term in tl.static_range(TERMS - 1):
        series = 1 - small * series * (1 / (TERMS - term))
    return tl.where(is_small, small * series, 1 - tl.exp(-depth))


@triton.jit(do_not_specialize=["n_rays"])
def _weights(  # type: ignore[no-untyped-def]
    density, t_starts, t_ends, offsets, weights, behind, n_rays,
    RAYS: tl.constexpr, STEPS: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """The weights, and the transmittance ``behind`` each sample for the backward pass."""
    ray = tl.program_id(0).to(tl.int64) * RAYS + tl.arange(0, RAYS)
    begin, end, longest = _bounds(offsets, ray, n_rays)
    passed = tl.zeros([RAYS], density.dtype.element_ty)
    for first in range(0, longest, STEPS):
        at = begin + first + tl.arange(0, STEPS)[None, :]
        inside = at < end
        depth = _optical_depth(density, t_starts, t_ends, at, inside)
        # An exclusive sum, of shifted samples: an inclusive one minus the own depth would cancel behind opaque samples.
        late = _optical_depth(density, t_starts, t_ends, at - 1, inside & (at > begin))
        before = passed[:, None] + tl.cumsum(late, axis=1)
        passed += tl.sum(late, axis=1)
        tl.store(weights + at, tl.exp(-before) * _opacity(depth, TERMS), mask=inside)
        tl.store(behind + at, tl.exp(-(before + depth)), mask=inside)


@triton.jit(do_not_specialize=["n_rays"])
def _contributes(  # type: ignore[no-untyped-def]
    density, t_starts, t_ends, offsets, least_density, most_depth, kept, n_rays,
    RAYS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """``least_density`` is a tensor, so that its value need not be read by the CPU."""
    ray = tl.program_id(0).to(tl.int64) * RAYS + tl.arange(0, RAYS)
    begin, end, longest = _bounds(offsets, ray, n_rays)
    least = tl.load(least_density)
    passed = tl.zeros([RAYS], density.dtype.element_ty)
    for first in range(0, longest, STEPS):
        at = begin + first + tl.arange(0, STEPS)[None, :]
        inside = at < end
        own = tl.load(density + at, mask=inside, other=0.0)
        late = _optical_depth(density, t_starts, t_ends, at - 1, inside & (at > begin))
        before = passed[:, None] + tl.cumsum(late, axis=1)
        passed += tl.sum(late, axis=1)
        tl.store(kept + at, (own >= least) & (before <= most_depth), mask=inside)


@triton.jit(do_not_specialize=["n_rays"])
def _weights_backward(  # type: ignore[no-untyped-def]
    gradient, t_starts, t_ends, offsets, weights, behind, to_density, n_rays,
    RAYS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Derivatives by a sample's depth: + ``behind`` of its own weight, - w_j of each later weight w_j."""
    ray = tl.program_id(0).to(tl.int64) * RAYS + tl.arange(0, RAYS)
    begin, end, longest = _bounds(offsets, ray, n_rays)
    passed = tl.zeros([RAYS], to_density.dtype.element_ty)
    for first in range(0, longest, STEPS):
        # From the last tile to the first; ascending within a tile, so that loads are coalesced.
        at = end - first - STEPS + tl.arange(0, STEPS)[None, :]
        inside = at >= begin
        later = inside & (at + 1 < end)
        lost = tl.load(gradient + at + 1, mask=later, other=0.0) * tl.load(weights + at + 1, mask=later, other=0.0)
        after = passed[:, None] + tl.cumsum(lost, axis=1, reverse=True)
        passed += tl.sum(lost, axis=1)
        own = tl.load(gradient + at, mask=inside, other=0.0) * tl.load(behind + at, mask=inside, other=0.0)
        length = tl.load(t_ends + at, mask=inside, other=0.0) - tl.load(t_starts + at, mask=inside, other=0.0)
        tl.store(to_density + at, (own - after) * length, mask=inside)
