"""Hash encoding kernels in numba, for the CPU: the formulas of ``torch_reference``, forward and backward.

Three choices make them fast (docs/benchmarks.md, "Hash encoding"). Points are taken in blocks, level by level: a first
loop computes entries and weights of a block's vertices, which fill vector registers, and a second one reads or changes
the table, which cannot. Features are stored feature by feature (strides 1, N), as the network reads them. In the
backward pass each thread owns whole levels of the table: no atomic additions, and sums have a fixed order.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from nfsd3d.errors import InputError
from nfsd3d.generators.nerf.autograd import Context
from nfsd3d.generators.nerf.hashgrid.layout import PRIMES, Layout
from nfsd3d.generators.nerf.launch_numba import FAST, kernel, launch

UINT = np.uint32
PRIME_Y, PRIME_Z = UINT(PRIMES[1]), UINT(PRIMES[2])
# Points whose vertices are computed together; their entries and weights fit into the L1 cache.
BLOCK = 256
ZERO, ONE = np.float32(0), np.float32(1)


def interpolate(positions: Tensor, table: Tensor, layout: Layout) -> Tensor:
    """[N, L * F] trilinear interpolation at positions [N,3] in the unit cube; see ``torch_reference.interpolate``.

    Raises InputError for tensors that are not on the CPU.
    """
    if positions.device.type != "cpu":
        raise InputError("backend.field=numba works on the CPU only; choose backend.field=torch or machine=cpu")
    return _Interpolate.apply(positions, table, layout)


@torch.no_grad()
def position_gradient(positions: Tensor, table: Tensor, layout: Layout, gradient: Tensor) -> Tensor:
    """[N,3] ``gradient`` [N, L * F] of the result of :func:`interpolate`, with respect to its ``positions`` [N,3]."""
    positions = positions.contiguous()
    to_positions = torch.zeros_like(positions)
    columns, levels, workers = gradient.T.contiguous(), _arguments(layout), torch.get_num_threads()
    launch(_kernels(table.shape[1]).backward_positions, positions, table, *levels, workers, columns, to_positions)
    return to_positions


@torch.no_grad()
def table_gradient(positions: Tensor, table: Tensor, layout: Layout, gradient: Tensor) -> Tensor:
    """[entries, F] ``gradient`` [N, L * F] of the result of :func:`interpolate`, with respect to its ``table``."""
    positions, to_table = positions.contiguous(), torch.zeros_like(table)
    columns, levels, workers = gradient.T.contiguous(), _arguments(layout), torch.get_num_threads()
    launch(_kernels(table.shape[1]).backward_table, positions, *levels, workers, columns, to_table)
    return to_table


class _Context(Context, Protocol):
    layout: Layout


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, positions: Tensor, table: Tensor, layout: Layout) -> Tensor:
        positions, table = positions.contiguous(), table.contiguous()
        columns = table.new_empty(layout.resolutions.shape[0] * table.shape[1], positions.shape[0])
        launch(
            _kernels(table.shape[1]).forward, positions, table, *_arguments(layout), torch.get_num_threads(), columns
        )
        ctx.save_for_backward(positions, table)
        ctx.layout = layout
        return columns.T

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        positions, table = ctx.saved_tensors
        to_positions = to_table = None
        if ctx.needs_input_grad[0]:
            to_positions = position_gradient(positions, table, ctx.layout, gradient)
        if ctx.needs_input_grad[1]:
            to_table = table_gradient(positions, table, ctx.layout, gradient)
        return to_positions, to_table, None


def _arguments(layout: Layout) -> tuple[Tensor, Tensor, Tensor, np.uint32]:
    return layout.resolutions, layout.offsets, layout.hashed, UINT(layout.entry_mask)


@njit(inline="always")
def _cell(coordinate, resolution):  # type: ignore[no-untyped-def]
    """The cell of a coordinate in [0,1] and the position within it; the last cell includes its far border."""
    # float32 represents these integers exactly; numba's int64 would widen the arithmetic to float64.
    scaled = coordinate * np.float32(resolution)
    cell = min(max(np.int32(scaled), np.int32(0)), np.int32(resolution - 1))
    return UINT(cell), scaled - np.float32(cell)


@njit(inline="always")
def _entries(i, j, k, resolution, offset, hashed, mask):  # type: ignore[no-untyped-def]
    """The entries of a cell's 8 vertices: bit 0 of the corner's number is its x, bit 1 its y, bit 2 its z.

    Indices are unsigned: numba tests every signed index for being negative, which halves the speed.
    """
    if hashed:
        y0, z0 = UINT(j * PRIME_Y), UINT(k * PRIME_Z)
        y1, z1 = UINT(y0 + PRIME_Y), UINT(z0 + PRIME_Z)
        a, b, c, d, i1 = y0 ^ z0, y1 ^ z0, y0 ^ z1, y1 ^ z1, UINT(i + UINT(1))
        return (
            UINT(((i ^ a) & mask) + offset), UINT(((i1 ^ a) & mask) + offset),
            UINT(((i ^ b) & mask) + offset), UINT(((i1 ^ b) & mask) + offset),
            UINT(((i ^ c) & mask) + offset), UINT(((i1 ^ c) & mask) + offset),
            UINT(((i ^ d) & mask) + offset), UINT(((i1 ^ d) & mask) + offset),
        )  # fmt: skip
    side = UINT(resolution + 1)
    a = UINT(i + side * UINT(j + side * k) + offset)
    b, c = UINT(a + side), UINT(a + side * side)
    d = UINT(c + side)
    return a, UINT(a + UINT(1)), b, UINT(b + UINT(1)), c, UINT(c + UINT(1)), d, UINT(d + UINT(1))


@njit(inline="always")
def _weights(x, y, z):  # type: ignore[no-untyped-def]
    """The trilinear weights of the 8 vertices, in the order of ``_entries``."""
    x0, y0, z0 = ONE - x, ONE - y, ONE - z
    a, b, c, d = y0 * z0, y * z0, y0 * z, y * z
    return x0 * a, x * a, x0 * b, x * b, x0 * c, x * c, x0 * d, x * d


@njit
def _block(positions, number):  # type: ignore[no-untyped-def]
    """The coordinates x, y and z of the points in a block, each contiguous."""
    part = positions[number * BLOCK : (number + 1) * BLOCK]
    return part[:, 0].copy(), part[:, 1].copy(), part[:, 2].copy()


@njit(fastmath=set(FAST), error_model="numpy")
def _vertices(points, resolution, offset, hashed, mask):  # type: ignore[no-untyped-def]
    """[8, BLOCK] entries and weights of the vertices around the points of a block."""
    xs, ys, zs = points
    # Of a size that the compiler knows, and new: it could not tell else whether a loop overwrites what it reads.
    entries, weights = np.empty((8, BLOCK), UINT), np.empty((8, BLOCK), xs.dtype)
    if hashed:  # outside of the loops, so that each of them has no branch
        for n in range(xs.shape[0]):
            i, x = _cell(xs[n], resolution)
            j, y = _cell(ys[n], resolution)
            k, z = _cell(zs[n], resolution)
            entry, weight = _entries(i, j, k, resolution, offset, True, mask), _weights(x, y, z)
            for corner in range(8):
                entries[corner, n] = entry[corner]
                weights[corner, n] = weight[corner]
    else:
        for n in range(xs.shape[0]):
            i, x = _cell(xs[n], resolution)
            j, y = _cell(ys[n], resolution)
            k, z = _cell(zs[n], resolution)
            entry, weight = _entries(i, j, k, resolution, offset, False, mask), _weights(x, y, z)
            for corner in range(8):
                entries[corner, n] = entry[corner]
                weights[corner, n] = weight[corner]
    return entries, weights


@njit(fastmath=set(FAST), error_model="numpy")
def _fractions(points, resolution):  # type: ignore[no-untyped-def]
    """The positions of a block's points within their cells, x, y and z."""
    xs, ys, zs = points
    within = np.empty((3, BLOCK), xs.dtype)
    for n in range(xs.shape[0]):
        within[0, n] = _cell(xs[n], resolution)[1]
        within[1, n] = _cell(ys[n], resolution)[1]
        within[2, n] = _cell(zs[n], resolution)[1]
    return within[0], within[1], within[2]


@njit(inline="always")
def _eight(values, n):  # type: ignore[no-untyped-def]
    """Column ``n`` of [8, BLOCK] values, in registers."""
    return (
        values[0, n], values[1, n], values[2, n], values[3, n], values[4, n], values[5, n], values[6, n], values[7, n],
    )  # fmt: skip


@njit(fastmath=set(FAST), error_model="numpy")
def _add_position_gradient(table, width, vertices, fractions, scale, own, to_own):  # type: ignore[no-untyped-def]
    """Adds to the gradient of a block's positions, ``to_own`` [n,3]; that of its features is ``own`` [width,n].

    ``scale`` is the level's resolution: cells for each unit of length.
    ``width`` is a constant of the caller, so that the compiler unrolls the loop over features.
    """
    # Differences along x first: what is left is bilinear, then linear.
    (entries, _), (xs, ys, zs) = vertices, fractions
    for n in range(own.shape[1]):
        entry, x, y, z = _eight(entries, n), xs[n], ys[n], zs[n]
        to_x = to_y = to_z = ZERO
        for feature in range(width):
            change = scale * own[feature, n]
            a0, a1 = table[entry[0], feature], table[entry[1], feature]
            b0, b1 = table[entry[2], feature], table[entry[3], feature]
            c0, c1 = table[entry[4], feature], table[entry[5], feature]
            d0, d1 = table[entry[6], feature], table[entry[7], feature]
            da, db, dc, dd = a1 - a0, b1 - b0, c1 - c0, d1 - d0
            a, b, c, d = a0 + x * da, b0 + x * db, c0 + x * dc, d0 + x * dd
            to_x += change * ((ONE - z) * (da + y * (db - da)) + z * (dc + y * (dd - dc)))
            to_y += change * ((ONE - z) * (b - a) + z * (d - c))
            to_z += change * ((ONE - y) * (c - a) + y * (d - b))
        to_own[n, 0] += to_x
        to_own[n, 1] += to_y
        to_own[n, 2] += to_z


class _Kernels(NamedTuple):
    forward: Callable[..., None]
    backward_table: Callable[..., None]
    backward_positions: Callable[..., None]


@cache
def _kernels(width: int) -> _Kernels:
    """The kernels for entries of ``width`` features, a compile-time constant so that the compiler unrolls the loops."""

    @kernel()
    def forward(positions, table, resolutions, offsets, hashed, mask, workers, columns):  # type: ignore[no-untyped-def]
        # Threads work on the same level, whose entries stay in the cache.
        blocks = (positions.shape[0] + BLOCK - 1) // BLOCK
        share = (blocks + workers - 1) // workers
        for worker in prange(workers):
            for level in range(resolutions.shape[0]):
                for block in range(worker * share, min(blocks, (worker + 1) * share)):
                    points = _block(positions, block)
                    entries, weights = _vertices(points, resolutions[level], UINT(offsets[level]), hashed[level], mask)
                    own = columns[level * width : (level + 1) * width, block * BLOCK : (block + 1) * BLOCK]
                    for n in range(own.shape[1]):
                        entry, weight = _eight(entries, n), _eight(weights, n)
                        for feature in range(width):
                            total = weight[0] * table[entry[0], feature]
                            for corner in range(1, 8):
                                total += weight[corner] * table[entry[corner], feature]
                            own[feature, n] = total

    @kernel()
    def backward_table(  # type: ignore[no-untyped-def]
        positions, resolutions, offsets, hashed, mask, workers, columns, to_table
    ):
        # One thread owns a level's entries: no two threads add to the same entry, and sums have a fixed order.
        # Threads take every workers-th level: coarse levels, which stay in the cache, are faster than fine ones.
        for worker in prange(workers):
            for level in range(worker, resolutions.shape[0], workers):
                for block in range((positions.shape[0] + BLOCK - 1) // BLOCK):
                    points = _block(positions, block)
                    entries, weights = _vertices(points, resolutions[level], UINT(offsets[level]), hashed[level], mask)
                    own = columns[level * width : (level + 1) * width, block * BLOCK : (block + 1) * BLOCK]
                    for n in range(own.shape[1]):
                        entry, weight = _eight(entries, n), _eight(weights, n)
                        for feature in range(width):
                            change = own[feature, n]
                            for corner in range(8):
                                to_table[entry[corner], feature] += weight[corner] * change

    @kernel()
    def backward_positions(  # type: ignore[no-untyped-def]
        positions, table, resolutions, offsets, hashed, mask, workers, columns, to_positions
    ):
        blocks = (positions.shape[0] + BLOCK - 1) // BLOCK
        share = (blocks + workers - 1) // workers
        for worker in prange(workers):
            for level in range(resolutions.shape[0]):
                resolution = resolutions[level]
                for block in range(worker * share, min(blocks, (worker + 1) * share)):
                    points = _block(positions, block)
                    vertices = _vertices(points, resolution, UINT(offsets[level]), hashed[level], mask)
                    own = columns[level * width : (level + 1) * width, block * BLOCK : (block + 1) * BLOCK]
                    to_own = to_positions[block * BLOCK : (block + 1) * BLOCK]
                    fractions = _fractions(points, resolution)
                    _add_position_gradient(table, width, vertices, fractions, np.float32(resolution), own, to_own)

    return _Kernels(forward, backward_table, backward_positions)
