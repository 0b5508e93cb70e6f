"""Sums over the samples of each ray in Triton, for CUDA: ``accumulate`` and ``composite``, forward and backward.

float32 or float64. Each ray is summed on its own, so that its sums need no more precision than its values. No two
programs write to the same address, so that results are deterministic.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from nfsd3d.generators.nerf.autograd import Context
from nfsd3d.generators.nerf.launch_triton import INTERPRETED, check_device, launch, power_of_two
from nfsd3d.generators.nerf.sampling.sampling import RaySamples

# Samples of one ray that are processed together: a ray through an object's shell has a few tens.
STEPS = 32
# Elements of one program of 128 threads (Triton's default, 4 warps): 4 to 8 per thread, by kind of tile. That is enough
# loads in flight to hide the memory latency, and few enough registers for many concurrent programs.
# The interpreter's time is proportional to the number of operations, whatever their size.
TILE = 2048 if INTERPRETED else 512
WIDE_TILE = 4096 if INTERPRETED else 1024


def accumulate(values: Tensor, samples: RaySamples, weights: Tensor | None = None) -> Tensor:
    """[n_rays, C] per ray the sum of its samples' ``values`` [S,C]; see ``compositing.accumulate``.

    Raises InputError for tensors that are not on a GPU, except in Triton's interpreter.
    """
    check_device(values, "backend.sampler")
    return _SumByRay.apply(values, weights, samples.offsets, samples.ray_indices)


def composite(weights: Tensor, colour: Tensor, depth: Tensor, samples: RaySamples) -> Tensor:
    """[n_rays, 6] sums of weights, and of these times colour, depth, squared depth; see ``compositing.composite``.

    Raises InputError for tensors that are not on a GPU, except in Triton's interpreter.
    """
    check_device(weights, "backend.sampler")
    return _Composite.apply(weights, colour, depth, samples.offsets, samples.ray_indices)


class _SumByRay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, values: Tensor, weights: Tensor | None, offsets: Tensor, ray_indices: Tensor) -> Tensor:
        values = values.contiguous()
        weights = None if weights is None else weights.contiguous()
        n_rays, channels = offsets.shape[0] - 1, values.shape[1]
        padded = power_of_two(channels)
        sums = values.new_empty(n_rays, channels)
        rays = max(WIDE_TILE // (STEPS * padded), 1)
        launch(
            _sum_by_ray,
            (triton.cdiv(n_rays, rays),),
            values,
            weights,
            offsets,
            sums,
            n_rays,
            CHANNELS=channels,
            PADDED=padded,
            RAYS=rays,
            STEPS=STEPS,
        )
        ctx.save_for_backward(values, weights, ray_indices)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        values, weights, ray_indices = ctx.saved_tensors
        count, channels = values.shape
        padded = power_of_two(channels)
        block = max(TILE // padded, 1)
        to_values = torch.empty_like(values) if ctx.needs_input_grad[0] else None
        to_weights = torch.empty_like(weights) if ctx.needs_input_grad[1] else None
        launch(
            _sum_by_ray_backward,
            (triton.cdiv(count, block),),
            gradient.contiguous(),
            values,
            weights,
            ray_indices,
            to_values,
            to_weights,
            count,
            CHANNELS=channels,
            PADDED=padded,
            BLOCK=block,
        )
        return to_values, to_weights, None, None


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context, weights: Tensor, colour: Tensor, depth: Tensor, offsets: Tensor, ray_indices: Tensor
    ) -> Tensor:
        weights, colour, depth = weights.contiguous(), colour.contiguous(), depth.contiguous()
        n_rays = offsets.shape[0] - 1
        sums = weights.new_empty(n_rays, 6)
        rays = TILE // STEPS
        launch(
            _composite,
            (triton.cdiv(n_rays, rays),),
            weights,
            colour,
            depth,
            offsets,
            sums,
            n_rays,
            RAYS=rays,
            STEPS=STEPS,
        )
        ctx.save_for_backward(weights, colour, depth, ray_indices)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        weights, colour, depth, ray_indices = ctx.saved_tensors
        count = weights.shape[0]
        to_weights, to_colour = torch.empty_like(weights), torch.empty_like(colour)
        launch(
            _composite_backward,
            (triton.cdiv(count, TILE),),
            gradient.contiguous(),
            weights,
            colour,
            depth,
            ray_indices,
            to_weights,
            to_colour,
            count,
            BLOCK=TILE,
        )
        return to_weights, to_colour, None, None, None


# --- kernels ---------------------------------------------------------------------------------------------------------
# The numbers of rays and samples vary between calls; "do_not_specialize" avoids a compilation for each value. Samples
# are counted in int64.


@triton.jit(do_not_specialize=["n_rays"])
def _sum_by_ray(  # type: ignore[no-untyped-def]
    values, weights, offsets, sums, n_rays,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, RAYS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Sums of RAYS rays. Their samples are one axis, so that consecutive samples' channels are adjacent: Triton's
    versions differ in which of two axes is laid along the threads of a warp.
    """
    lane = tl.arange(0, RAYS * STEPS)
    ray = tl.program_id(0).to(tl.int64) * RAYS + lane // STEPS
    begin = tl.load(offsets + ray, mask=ray < n_rays, other=0)
    end = tl.load(offsets + ray + 1, mask=ray < n_rays, other=0)
    longest = tl.max(end - begin, axis=0).to(tl.int32)
    channel = tl.arange(0, PADDED)[None, :]
    total = tl.zeros([RAYS * STEPS, PADDED], sums.dtype.element_ty)
    for first in range(0, longest, STEPS):
        at = begin + first + lane % STEPS
        inside = at < end
        shown = inside[:, None] & (channel < CHANNELS)
        value = tl.load(values + at[:, None] * CHANNELS + channel, mask=shown, other=0.0)
        if weights is not None:
            value *= tl.load(weights + at, mask=inside, other=0.0)[:, None]
        total += value
    own = (tl.program_id(0).to(tl.int64) * RAYS + tl.arange(0, RAYS))[:, None]
    of_rays = tl.sum(tl.reshape(total, [RAYS, STEPS, PADDED]), axis=1)
    tl.store(sums + own * CHANNELS + channel, of_rays, mask=(own < n_rays) & (channel < CHANNELS))


@triton.jit(do_not_specialize=["count"])
def _sum_by_ray_backward(  # type: ignore[no-untyped-def]
    gradient, values, weights, ray_indices, to_values, to_weights, count,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    channel = tl.arange(0, PADDED)[None, :]
    shown = inside[:, None] & (channel < CHANNELS)
    ray = tl.load(ray_indices + at, mask=inside, other=0)
    change = tl.load(gradient + ray[:, None] * CHANNELS + channel, mask=shown, other=0.0)
    place = at[:, None] * CHANNELS + channel
    if to_weights is not None:
        value = tl.load(values + place, mask=shown, other=0.0)
        tl.store(to_weights + at, tl.sum(value * change, axis=1), mask=inside)
    if to_values is not None:
        if weights is not None:
            change *= tl.load(weights + at, mask=inside, other=0.0)[:, None]
        tl.store(to_values + place, change, mask=shown)


@triton.jit
def _store_sum(sums, own, column, values, n_rays, RAYS: tl.constexpr, STEPS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sums over STEPS neighbours of ``values`` [RAYS * STEPS], in one of six columns."""
    of_rays = tl.sum(tl.reshape(values, [RAYS, STEPS]), axis=1)
    tl.store(sums + own * 6 + column, of_rays, mask=own < n_rays)


@triton.jit(do_not_specialize=["n_rays"])
def _composite(  # type: ignore[no-untyped-def]
    weights, colour, depth, offsets, sums, n_rays, RAYS: tl.constexpr, STEPS: tl.constexpr
):  # fmt: skip
    """One pass over a ray's samples for its six sums."""
    lane = tl.arange(0, RAYS * STEPS)
    ray = tl.program_id(0).to(tl.int64) * RAYS + lane // STEPS
    begin = tl.load(offsets + ray, mask=ray < n_rays, other=0)
    end = tl.load(offsets + ray + 1, mask=ray < n_rays, other=0)
    longest = tl.max(end - begin, axis=0).to(tl.int32)
    opacity = tl.zeros([RAYS * STEPS], sums.dtype.element_ty)
    red = tl.zeros_like(opacity)
    green = tl.zeros_like(opacity)
    blue = tl.zeros_like(opacity)
    mean = tl.zeros_like(opacity)
    square = tl.zeros_like(opacity)
    for first in range(0, longest, STEPS):
        at = begin + first + lane % STEPS
        inside = at < end
        weight = tl.load(weights + at, mask=inside, other=0.0)
        far = tl.load(depth + at, mask=inside, other=0.0)
        opacity += weight
        red += weight * tl.load(colour + 3 * at, mask=inside, other=0.0)
        green += weight * tl.load(colour + 3 * at + 1, mask=inside, other=0.0)
        blue += weight * tl.load(colour + 3 * at + 2, mask=inside, other=0.0)
        mean += weight * far
        square += weight * far * far
    own = tl.program_id(0).to(tl.int64) * RAYS + tl.arange(0, RAYS)
    _store_sum(sums, own, 0, opacity, n_rays, RAYS, STEPS)
    _store_sum(sums, own, 1, red, n_rays, RAYS, STEPS)
    _store_sum(sums, own, 2, green, n_rays, RAYS, STEPS)
    _store_sum(sums, own, 3, blue, n_rays, RAYS, STEPS)
    _store_sum(sums, own, 4, mean, n_rays, RAYS, STEPS)
    _store_sum(sums, own, 5, square, n_rays, RAYS, STEPS)


@triton.jit(do_not_specialize=["count"])
def _composite_backward(  # type: ignore[no-untyped-def]
    gradient, weights, colour, depth, ray_indices, to_weights, to_colour, count, BLOCK: tl.constexpr
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    change = gradient + 6 * tl.load(ray_indices + at, mask=inside, other=0)
    weight = tl.load(weights + at, mask=inside, other=0.0)
    far = tl.load(depth + at, mask=inside, other=0.0)
    total = tl.load(change, mask=inside, other=0.0)
    for channel in tl.static_range(3):
        by_colour = tl.load(change + 1 + channel, mask=inside, other=0.0)
        total += by_colour * tl.load(colour + 3 * at + channel, mask=inside, other=0.0)
        tl.store(to_colour + 3 * at + channel, weight * by_colour, mask=inside)
    by_mean = tl.load(change + 4, mask=inside, other=0.0)
    by_square = tl.load(change + 5, mask=inside, other=0.0)
    tl.store(to_weights + at, total + (by_mean + by_square * far) * far, mask=inside)
