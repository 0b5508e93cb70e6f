"""Compositing kernels in numba, for the CPU: the formulas of ``compositing``, ray by ray, forward and backward."""

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from nfsd3d.generators.nerf.autograd import Context
from nfsd3d.generators.nerf.launch_numba import kernel, launch
from nfsd3d.generators.nerf.sampling.sampling import RaySamples

ZERO = np.float32(0)


def render_weights(density: Tensor, samples: RaySamples) -> Tensor:
    """[S] weights; see ``compositing.render_weights``."""
    return _Weights.apply(density, samples.t_ends - samples.t_starts, samples.offsets)


def accumulate(values: Tensor, samples: RaySamples, weights: Tensor | None) -> Tensor:
    """[n_rays, C] sums along rays; see ``compositing.accumulate``."""
    weights = values.new_ones(values.shape[0]) if weights is None else weights
    return _Sums.apply(values, weights, samples.offsets)


def composite(weights: Tensor, colour: Tensor, depth: Tensor, samples: RaySamples) -> Tensor:
    """[n_rays, 6] sums of weights, and of these times colour, depth, squared depth; see ``compositing.composite``."""
    return _Composite.apply(weights, colour, depth, samples.offsets)


def contributes(density: Tensor, least_density: Tensor, samples: RaySamples, most_depth: float) -> Tensor:
    """[S] bool; see ``compositing.contributes``. Samples behind the optical depth ``most_depth`` are hidden."""
    kept = torch.empty_like(density, dtype=torch.bool)
    least = float(least_density)
    launch(_contributes, density, samples.t_starts, samples.t_ends, samples.offsets, least, most_depth, kept)
    return kept


class _Weights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, density: Tensor, lengths: Tensor, offsets: Tensor) -> Tensor:
        alpha = torch.expm1(density * -lengths).neg_()
        weights = torch.empty_like(alpha)
        launch(_weights, alpha, offsets, weights)
        ctx.save_for_backward(alpha, weights, lengths, offsets)
        return weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor, None, None]:
        alpha, weights, lengths, offsets = ctx.saved_tensors
        to_density = torch.empty_like(alpha)
        launch(_weights_backward, alpha, weights, lengths, offsets, gradient.contiguous(), to_density)
        return to_density, None, None


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, values: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
        values, weights = values.contiguous(), weights.contiguous()
        sums = values.new_empty(offsets.shape[0] - 1, values.shape[1])
        launch(_sums, values, weights, offsets, sums)
        ctx.save_for_backward(values, weights, offsets)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        values, weights, offsets = ctx.saved_tensors
        to_values, to_weights = torch.empty_like(values), torch.empty_like(weights)
        launch(_sums_backward, values, weights, offsets, gradient.contiguous(), to_values, to_weights)
        return to_values, to_weights, None


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, weights: Tensor, colour: Tensor, depth: Tensor, offsets: Tensor) -> Tensor:
        weights, columns = weights.contiguous(), colour.T.contiguous()  # the field stores colours by columns
        sums = weights.new_empty(offsets.shape[0] - 1, 6)
        launch(_composite, weights, columns, depth, offsets, sums)
        ctx.save_for_backward(weights, columns, depth, offsets)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        weights, columns, depth, offsets = ctx.saved_tensors
        to_weights, to_columns = torch.empty_like(weights), torch.empty_like(columns)
        launch(_composite_backward, weights, columns, depth, offsets, gradient.contiguous(), to_weights, to_columns)
        return to_weights, to_columns.T, None, None


@kernel()
def _weights(alpha, offsets, weights):  # type: ignore[no-untyped-def]
    for ray in prange(offsets.shape[0] - 1):
        transmittance = 1.0  # float64: a product of hundreds of factors near 1
        for s in range(offsets[ray], offsets[ray + 1]):
            weights[s] = transmittance * alpha[s]
            transmittance *= 1.0 - alpha[s]


@kernel()
def _contributes(density, t_starts, t_ends, offsets, least, most_depth, kept):  # type: ignore[no-untyped-def]
    for ray in prange(offsets.shape[0] - 1):
        before = 0.0
        for s in range(offsets[ray], offsets[ray + 1]):
            kept[s] = density[s] >= least and before <= most_depth
            before += density[s] * (t_ends[s] - t_starts[s])


@kernel()
def _weights_backward(alpha, weights, lengths, offsets, gradient, to_density):  # type: ignore[no-untyped-def]
    # With depth d = density * length and T the transmittance in front: dw_i/dd_i = T_i exp(-d_i), and
    # dw_j/dd_i = -w_j for samples j behind i.
    for ray in prange(offsets.shape[0] - 1):
        transmittance, behind = 1.0, 0.0
        for s in range(offsets[ray], offsets[ray + 1]):
            behind += gradient[s] * weights[s]
        for s in range(offsets[ray], offsets[ray + 1]):
            behind -= gradient[s] * weights[s]
            transmittance *= 1.0 - alpha[s]
            to_density[s] = (gradient[s] * transmittance - behind) * lengths[s]


@kernel()
def _sums(values, weights, offsets, sums):  # type: ignore[no-untyped-def]
    for ray in prange(offsets.shape[0] - 1):
        for channel in range(values.shape[1]):
            sums[ray, channel] = 0
        for s in range(offsets[ray], offsets[ray + 1]):
            for channel in range(values.shape[1]):
                sums[ray, channel] += weights[s] * values[s, channel]


@kernel()
def _sums_backward(values, weights, offsets, gradient, to_values, to_weights):  # type: ignore[no-untyped-def]
    for ray in prange(offsets.shape[0] - 1):
        for s in range(offsets[ray], offsets[ray + 1]):
            total = 0 * weights[s]
            for channel in range(values.shape[1]):
                to_values[s, channel] = weights[s] * gradient[ray, channel]
                total += values[s, channel] * gradient[ray, channel]
            to_weights[s] = total


@kernel()
def _composite(weights, colour, depth, offsets, sums):  # type: ignore[no-untyped-def]
    for ray in prange(offsets.shape[0] - 1):
        opacity = red = green = blue = first = second = ZERO
        for s in range(offsets[ray], offsets[ray + 1]):
            weight = weights[s]
            opacity += weight
            red += weight * colour[0, s]
            green += weight * colour[1, s]
            blue += weight * colour[2, s]
            first += weight * depth[s]
            second += weight * depth[s] * depth[s]
        sums[ray, 0], sums[ray, 1], sums[ray, 2], sums[ray, 3] = opacity, red, green, blue
        sums[ray, 4], sums[ray, 5] = first, second


@kernel()
def _composite_backward(  # type: ignore[no-untyped-def]
    weights, colour, depth, offsets, gradient, to_weights, to_colour
):
    for ray in prange(offsets.shape[0] - 1):
        opacity, red, green, blue = gradient[ray, 0], gradient[ray, 1], gradient[ray, 2], gradient[ray, 3]
        first, second = gradient[ray, 4], gradient[ray, 5]
        for s in range(offsets[ray], offsets[ray + 1]):
            of_colour = red * colour[0, s] + green * colour[1, s] + blue * colour[2, s]
            to_weights[s] = opacity + of_colour + (first + second * depth[s]) * depth[s]
            to_colour[0, s] = weights[s] * red
            to_colour[1, s] = weights[s] * green
            to_colour[2, s] = weights[s] * blue
