"""Volume rendering: alpha compositing of packed samples along rays (NeRF, arXiv 2003.08934, eq. 3; Max 1995).

``backend`` is the sampler's, a key of ``sampling.SAMPLERS``: ``numba`` and ``triton`` composite with kernels of theirs,
all others with the torch reference implementation.
"""

import math
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nfsd3d.generators.nerf.autograd import Context
from nfsd3d.generators.nerf.sampling.sampling import RaySamples

# Transmittance of a ray below which the samples behind are dropped.
SMALLEST_TRANSMITTANCE = 1e-4


def render_weights(density: Tensor, samples: RaySamples, *, backend: str = "torch") -> Tensor:
    """[S] each sample's weight in its ray's colour: T_i (1 - exp(-density_i * dt_i)).

    T_i = exp(-sum of density_j * dt_j over the ray's samples before i) is the transmittance. ``density`` [S] is in
    1/world unit. The weights of a ray sum to its opacity, at most 1.
    """
    kernels = _kernels(backend)
    if kernels is not None:
        weighted: Tensor = kernels.render_weights(density, samples)
        return weighted
    depth = density * (samples.t_ends - samples.t_starts)
    return torch.exp(-exclusive_sum(depth, samples)) * -torch.expm1(-depth)


def exclusive_sum(values: Tensor, samples: RaySamples) -> Tensor:
    """[S] per sample the sum of ``values`` [S] over the samples before it on its ray."""
    return _ExclusiveSum.apply(values, samples.offsets, samples.ray_indices)


@torch.no_grad()
def contributes(samples: RaySamples, density: Tensor, least_density: Tensor, *, backend: str = "torch") -> Tensor:
    """[S] bool: which samples have a ``density`` [S] of at least ``least_density`` (a scalar) and are not hidden.

    A sample is hidden if the transmittance in front of it is below :data:`SMALLEST_TRANSMITTANCE`.
    """
    kernels = _kernels(backend)
    if kernels is not None:
        kept: Tensor = kernels.contributes(density, least_density, samples, -math.log(SMALLEST_TRANSMITTANCE))
        return kept
    depth = density * (samples.t_ends - samples.t_starts)
    reached = exclusive_sum(depth, samples) <= -math.log(SMALLEST_TRANSMITTANCE)
    return (density >= least_density) & reached


def accumulate(values: Tensor, samples: RaySamples, *, weights: Tensor | None = None, backend: str = "torch") -> Tensor:
    """[n_rays, C] per ray the sum of its samples' ``values`` [S,C], times their ``weights`` [S] if given.

    Zero for a ray without samples.
    """
    kernels = _kernels(backend)
    if kernels is not None:
        sums: Tensor = kernels.accumulate(values, samples, weights)
        return sums
    if weights is not None:
        values = weights[:, None] * values
    return _SumByRay.apply(values, samples.offsets, samples.ray_indices)


def composite(
    weights: Tensor, colour: Tensor, depth: Tensor, samples: RaySamples, *, backend: str = "torch"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per ray the sums of its samples' ``weights`` [S]: opacity; and of these times colour, depth and squared depth.

    ``colour`` [S,3]; ``depth`` [S], without gradient; the results are [n_rays,1], [n_rays,3] and twice [n_rays,1].
    """
    kernels = _kernels(backend)
    if kernels is not None:
        sums = kernels.composite(weights, colour, depth.detach(), samples)
    else:
        one, depth = torch.ones_like(depth)[:, None], depth.detach()[:, None]
        values = torch.cat([one, colour, depth, depth.square()], dim=-1)
        sums = accumulate(values, samples, weights=weights, backend=backend)
    opacity, image, first, second = sums.split([1, 3, 1, 1], dim=-1)
    return opacity, image, first, second


def _kernels(backend: str) -> ModuleType | None:
    """The module with the kernels of ``backend``."""
    if backend == "numba":
        from nfsd3d.generators.nerf.compositing import numba_kernels

        return numba_kernels
    if backend == "triton":
        from nfsd3d.generators.nerf.compositing import triton_kernels

        return triton_kernels
    return None


class _ExclusiveSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, values: Tensor, offsets: Tensor, ray_indices: Tensor) -> Tensor:
        ctx.save_for_backward(offsets, ray_indices)
        # One running sum over all rays, in float64 because each ray's sum is the difference of two large numbers.
        ends = values.double().cumsum(0)
        running = torch.nn.functional.pad(ends, (1, 0))
        return (running[:-1] - running[offsets[ray_indices]]).to(values.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor, None, None]:
        offsets, ray_indices = ctx.saved_tensors
        ends = gradient.double().cumsum(0)
        running = torch.nn.functional.pad(ends, (1, 0))
        return (running[offsets[ray_indices + 1]] - ends).to(gradient.dtype), None, None


class _SumByRay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, values: Tensor, offsets: Tensor, ray_indices: Tensor) -> Tensor:
        ctx.save_for_backward(ray_indices)
        return torch.segment_reduce(values, "sum", offsets=offsets, axis=0, initial=0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor, None, None]:
        (ray_indices,) = ctx.saved_tensors
        return gradient[ray_indices], None, None
