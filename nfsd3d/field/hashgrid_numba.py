"""Hash encoding in numba, for the CPU: the same maths as ``hashgrid_torch``, forward and backward."""

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from nfsd3d.errors import InputError
from nfsd3d.field.hashgrid import PRIMES, Layout
from nfsd3d.kernels import kernel, launch

PRIME_Y, PRIME_Z = PRIMES[1], PRIMES[2]
# Points that one thread encodes at a time, level by level: their features stay in the fast cache.
BLOCK = 1024
ONE = np.float32(1)


def interpolate(positions: Tensor, table: Tensor, layout: Layout) -> Tensor:
    """[N, L * F] trilinear interpolation at positions [N,3] in the unit cube; see ``hashgrid_torch.interpolate``.

    Raises InputError for tensors that are not on the CPU.
    """
    if positions.device.type != "cpu":
        raise InputError("backend.field=numba works on the CPU only; choose backend.field=torch or machine=cpu")
    return _Interpolate.apply(positions, table, layout)


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, positions: Tensor, table: Tensor, layout: Layout) -> Tensor:
        positions, table = positions.contiguous(), table.contiguous()
        features = table.new_empty(positions.shape[0], layout.resolutions.shape[0] * table.shape[1])
        launch(_kernels(table.shape[1]).forward, positions, table, *_arguments(layout), features)
        ctx.save_for_backward(positions, table)
        ctx.layout = layout
        return features

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        positions, table = ctx.saved_tensors
        gradient = gradient.contiguous()
        to_positions = to_table = None
        if ctx.needs_input_grad[0]:
            to_positions = torch.empty_like(positions)
            launch(_kernels(table.shape[1]).backward_positions, positions, table, *_arguments(ctx.layout), gradient, to_positions)
        if ctx.needs_input_grad[1]:
            to_table = torch.zeros_like(table)
            launch(_kernels(table.shape[1]).backward_table, positions, *_arguments(ctx.layout), gradient, to_table)
        return to_positions, to_table, None


def _arguments(layout: Layout) -> tuple[Tensor, Tensor, Tensor, int]:
    return layout.resolutions, layout.offsets, layout.hashed, layout.entry_mask


@njit(inline="always")
def _cell(coordinate, resolution):  # type: ignore[no-untyped-def]
    """The cell of a coordinate in [0,1] and the position within it; the last cell holds its far border too."""
    # float32 holds these integers exactly, and does not widen float32 arithmetic as numba's int64 would.
    scaled = coordinate * np.float32(resolution)
    cell = min(max(int(math.floor(scaled)), 0), resolution - 1)
    return cell, scaled - np.float32(cell)


@njit(inline="always")
def _entries(i, j, k, resolution, hashed, mask):  # type: ignore[no-untyped-def]
    """The entries of a cell's 8 vertices: bit 0 of the corner's number is its x, bit 1 its y, bit 2 its z."""
    if hashed:
        y0, z0 = j * PRIME_Y, k * PRIME_Z
        y1, z1 = y0 + PRIME_Y, z0 + PRIME_Z
        a, b, c, d = y0 ^ z0, y1 ^ z0, y0 ^ z1, y1 ^ z1
        i1 = i + 1
        return (
            (i ^ a) & mask, (i1 ^ a) & mask, (i ^ b) & mask, (i1 ^ b) & mask,
            (i ^ c) & mask, (i1 ^ c) & mask, (i ^ d) & mask, (i1 ^ d) & mask,
        )  # fmt: skip
    side = resolution + 1
    a = i + side * (j + side * k)
    b, c = a + side, a + side * side
    d = c + side
    return a, a + 1, b, b + 1, c, c + 1, d, d + 1


@njit(inline="always")
def _weights(x, y, z):  # type: ignore[no-untyped-def]
    x0, y0, z0 = ONE - x, ONE - y, ONE - z
    a, b, c, d = y0 * z0, y * z0, y0 * z, y * z
    return x0 * a, x * a, x0 * b, x * b, x0 * c, x * c, x0 * d, x * d


class _Kernels(NamedTuple):
    forward: Callable[..., None]
    backward_table: Callable[..., None]
    backward_positions: Callable[..., None]


@cache
def _kernels(width: int) -> _Kernels:
    """The kernels for entries of ``width`` features, a constant to the compiler so that it unrolls their loops."""

    @kernel()
    def forward(positions, table, resolutions, offsets, hashed, mask, features):  # type: ignore[no-untyped-def]
        count = positions.shape[0]
        for block in prange((count + BLOCK - 1) // BLOCK):
            for level in range(resolutions.shape[0]):
                resolution, is_hashed, column = resolutions[level], hashed[level], level * width
                entries = table[offsets[level] :]
                for n in range(block * BLOCK, min(count, (block + 1) * BLOCK)):
                    i, x = _cell(positions[n, 0], resolution)
                    j, y = _cell(positions[n, 1], resolution)
                    k, z = _cell(positions[n, 2], resolution)
                    entry = _entries(i, j, k, resolution, is_hashed, mask)
                    weight = _weights(x, y, z)
                    for feature in range(width):
                        total = weight[0] * entries[entry[0], feature]
                        for corner in range(1, 8):
                            total += weight[corner] * entries[entry[corner], feature]
                        features[n, column + feature] = total

    @kernel()
    def backward_table(positions, resolutions, offsets, hashed, mask, gradient, to_table):  # type: ignore[no-untyped-def]
        # One thread owns a level's entries, so that no two add to the same one, and sums come in a fixed order.
        for level in prange(resolutions.shape[0]):
            resolution, is_hashed, column = resolutions[level], hashed[level], level * width
            entries = to_table[offsets[level] :]
            for n in range(positions.shape[0]):
                i, x = _cell(positions[n, 0], resolution)
                j, y = _cell(positions[n, 1], resolution)
                k, z = _cell(positions[n, 2], resolution)
                entry = _entries(i, j, k, resolution, is_hashed, mask)
                weight = _weights(x, y, z)
                for corner in range(8):
                    for feature in range(width):
                        entries[entry[corner], feature] += weight[corner] * gradient[n, column + feature]

    @kernel()
    def backward_positions(positions, table, resolutions, offsets, hashed, mask, gradient, to_positions):  # type: ignore[no-untyped-def]
        for n in prange(positions.shape[0]):
            to_positions[n, 0] = to_positions[n, 1] = to_positions[n, 2] = 0
            for level in range(resolutions.shape[0]):
                resolution, column = resolutions[level], level * width
                entries = table[offsets[level] :]
                i, x = _cell(positions[n, 0], resolution)
                j, y = _cell(positions[n, 1], resolution)
                k, z = _cell(positions[n, 2], resolution)
                x0, y0, z0 = ONE - x, ONE - y, ONE - z
                entry = _entries(i, j, k, resolution, hashed[level], mask)
                scale = np.float32(resolution)
                for feature in range(width):
                    factor = scale * gradient[n, column + feature]
                    a, b = entries[entry[0], feature], entries[entry[1], feature]
                    c, d = entries[entry[2], feature], entries[entry[3], feature]
                    e, f = entries[entry[4], feature], entries[entry[5], feature]
                    g, h = entries[entry[6], feature], entries[entry[7], feature]
                    to_positions[n, 0] += factor * (z0 * (y0 * (b - a) + y * (d - c)) + z * (y0 * (f - e) + y * (h - g)))
                    to_positions[n, 1] += factor * (z0 * (x0 * (c - a) + x * (d - b)) + z * (x0 * (g - e) + x * (h - f)))
                    to_positions[n, 2] += factor * (y0 * (x0 * (e - a) + x * (f - b)) + y * (x0 * (g - c) + x * (h - d)))

    return _Kernels(forward, backward_table, backward_positions)
