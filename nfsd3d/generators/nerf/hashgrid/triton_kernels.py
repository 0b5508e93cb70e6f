"""Hash encoding kernels in Triton, for CUDA: the formulas of ``torch_reference``, forward and backward.

float32 or float64; the table may be read from a copy in float16. The gradient with respect to the table is a sum of
atomic additions in no fixed order, so that its last bits differ from run to run. Everything else is deterministic.

Design note. Problem: the backward pass adds 8 values per point and level to the table, and thousands of threads add to
the same entries of coarse levels at once; these atomic additions serialise. Idea: one thread processes RUN consecutive
points, which are neighbours in space (see ``morton_triton``), and adds their gradients up in a register while they stay
in one cell. Measured: see RUN, and docs/benchmarks.md, "Stable Diffusion on a GPU", kernels.
"""

from typing import Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from nfsd3d.generators.nerf.autograd import Context
from nfsd3d.generators.nerf.hashgrid.layout import PRIMES, Layout
from nfsd3d.generators.nerf.launch_triton import INTERPRETED, check_device, launch, power_of_two

PRIME_Y, PRIME_Z = tl.constexpr(PRIMES[1]), tl.constexpr(PRIMES[2])

# Elements of a feature tile in one program of 128 threads (Triton's default, 4 warps). Each thread has 4 elements of 8
# corners in flight, which hides the memory latency. It needs few enough registers (40 to 64 with 2 features, compiled
# for sm_90) for an SM to hold 1,000 to 1,600 threads.
# The interpreter's time is proportional to the number of operations, whatever their size.
TILE = 4096 if INTERPRETED else 512
# Consecutive points, neighbours in space (see ``morton_triton``) or on a ray, whose gradients one thread adds up while
# they stay in one cell. On coarse levels, whose few entries are contended, this leaves about 1 in 32 atomic additions;
# fine levels have little contention and keep most of theirs. Measured on an H100 with the samples of a view of 512
# pixels: 4.3 ms for runs of 32 points, 4.5 for 16, 5.2 for 8, 6.9 for 4.
RUN = 32


def interpolate(positions: Tensor, table: Tensor, layout: Layout, *, half: bool = False) -> Tensor:
    """[N, L * F] trilinear interpolation at positions [N,3] in the unit cube; see ``torch_reference.interpolate``.

    The result is stored feature by feature (strides 1, N): the kernels write and matrix products read it in this order.
    With ``half`` the table is read from a copy in float16, made by each call; sums and gradients are in the table's own
    type.

    Raises InputError for tensors that are not on a GPU, except in Triton's interpreter.
    """
    check_device(positions, "backend.field")
    return _Interpolate.apply(positions, table, layout, half)


@torch.no_grad()
def table_gradient(positions: Tensor, table: Tensor, layout: Layout, gradient: Tensor) -> Tensor:
    """[entries, F] ``gradient`` [N, L * F] of the result of :func:`interpolate`, with respect to its ``table``."""
    check_device(positions, "backend.field")
    positions, to_table = positions.contiguous(), torch.zeros_like(table)
    count, levels, width = positions.shape[0], layout.resolutions.shape[0], table.shape[1]
    padded = power_of_two(width)
    runs = max(TILE // (8 * padded), 1)
    launch(
        _backward_table,
        (triton.cdiv(count, runs * RUN), levels),
        positions,
        *_arguments(layout),
        gradient,
        *gradient.stride(),
        to_table,
        count,
        WIDTH=width,
        PADDED=padded,
        RUNS=runs,
        STEPS=RUN,
    )
    return to_table


class _Context(Context, Protocol):
    layout: Layout


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, positions: Tensor, table: Tensor, layout: Layout, half: bool) -> Tensor:
        positions, table = positions.contiguous(), table.contiguous()
        read = table.half() if half else table
        count, levels, width = positions.shape[0], layout.resolutions.shape[0], table.shape[1]
        # In the table's type under autocast too; the network's first layer then rounds it, as with the reference.
        features = table.new_empty_strided((count, levels * width), (1, max(count, 1)))
        padded = power_of_two(width)
        block = max(TILE // padded, 1)
        # Levels are the slow axis: the programs of one level run together, and its entries stay in the L2 cache.
        launch(
            _forward,
            (triton.cdiv(count, block), levels),
            positions,
            read,
            *_arguments(layout),
            features,
            count,
            WIDTH=width,
            PADDED=padded,
            BLOCK=block,
        )
        ctx.save_for_backward(positions, table, read if ctx.needs_input_grad[0] else None)
        ctx.layout = layout
        return features

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        positions, table, read = ctx.saved_tensors
        count, levels, width = positions.shape[0], ctx.layout.resolutions.shape[0], table.shape[1]
        to_positions = to_table = None
        if ctx.needs_input_grad[0]:
            to_positions = torch.empty_like(positions)
            padded = power_of_two(width)
            block = max(TILE // padded, 1)
            launch(
                _backward_positions,
                (triton.cdiv(count, block),),
                positions,
                read,
                *_arguments(ctx.layout),
                gradient,
                *gradient.stride(),
                to_positions,
                count,
                levels,
                WIDTH=width,
                PADDED=padded,
                BLOCK=block,
            )
        if ctx.needs_input_grad[1]:
            to_table = table_gradient(positions, table, ctx.layout, gradient)
        return to_positions, to_table, None, None


def _arguments(layout: Layout) -> tuple[Tensor, Tensor, Tensor, int]:
    return layout.resolutions, layout.offsets, layout.hashed, layout.entry_mask


# --- kernels ---------------------------------------------------------------------------------------------------------
# The number of points and the strides vary between calls; "do_not_specialize" avoids a compilation for each value.
# Products that may exceed 2^31 (points times features, entries times features) are int64.


@triton.jit
def _level(level, resolutions, offsets, hashed):  # type: ignore[no-untyped-def]
    """Resolution, first entry, whether hashed, and the factors of a vertex's y and z in its entry's index."""
    resolution = tl.load(resolutions + level).to(tl.int32)
    is_hashed = tl.load(hashed + level)
    side = (resolution + 1).to(tl.uint32)
    times_y = tl.where(is_hashed, PRIME_Y, side)
    times_z = tl.where(is_hashed, PRIME_Z, side * side)
    return resolution, tl.load(offsets + level), is_hashed, times_y, times_z


@triton.jit
def _cell(coordinate, resolution):  # type: ignore[no-untyped-def]
    """The cell of a coordinate in [0,1] and the position within it; the last cell includes its far border.

    Comparisons with NaN are false here: a NaN gets cell 0, and stays NaN in the position.
    """
    cells = resolution.to(coordinate.dtype)
    scaled = coordinate * cells
    cell = tl.where(scaled > 0, scaled, 0.0)
    cell = tl.where(cell < cells - 1, cell, cells - 1).to(tl.int32)
    return cell.to(tl.uint32), scaled - cell.to(coordinate.dtype)


@triton.jit
def _cells(positions, n, inside, resolution):  # type: ignore[no-untyped-def]
    """The cells of points ``n`` along the three axes and the positions within them; zeros outside."""
    i, x = _cell(tl.load(positions + 3 * n, mask=inside, other=0.0), resolution)
    j, y = _cell(tl.load(positions + 3 * n + 1, mask=inside, other=0.0), resolution)
    k, z = _cell(tl.load(positions + 3 * n + 2, mask=inside, other=0.0), resolution)
    return i, j, k, x, y, z


@triton.jit
def _entry(i, j, k, corner, is_hashed, times_y, times_z, mask):  # type: ignore[no-untyped-def]
    """A vertex's entry, relative to its level's first: bit 0 of ``corner`` is its x, bit 1 its y, bit 2 its z.

    uint32 wraps around, as the hash requires; a dense level has fewer than 2^32 vertices.
    """
    i = i + (corner & 1)
    j = (j + ((corner >> 1) & 1)) * times_y
    k = (k + (corner >> 2)) * times_z
    return tl.where(is_hashed, (i ^ j ^ k) & mask, i + j + k).to(tl.int64)


@triton.jit
def _side(position, bit):  # type: ignore[no-untyped-def]
    """The weight along one axis of the near (``bit`` 0) or the far vertex."""
    return tl.where(bit != 0, position, 1 - position)


@triton.jit(do_not_specialize=["count"])
def _forward(  # type: ignore[no-untyped-def]
    positions, table, resolutions, offsets, hashed, mask, features, count,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    level = tl.program_id(1)
    resolution, offset, is_hashed, times_y, times_z = _level(level, resolutions, offsets, hashed)
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    feature = tl.arange(0, PADDED)[None, :]
    inside = n < count
    shown = inside[:, None] & (feature < WIDTH)
    i, j, k, x, y, z = _cells(positions, n, inside, resolution)
    first = table + offset * WIDTH
    total = tl.zeros([BLOCK, PADDED], features.dtype.element_ty)
    for corner in tl.static_range(8):
        entry = _entry(i, j, k, corner, is_hashed, times_y, times_z, mask)
        weight = _side(x, corner & 1) * _side(y, (corner >> 1) & 1) * _side(z, corner >> 2)
        value = tl.load(first + entry[:, None] * WIDTH + feature, mask=shown, other=0.0).to(total.dtype)
        total += weight[:, None].to(total.dtype) * value
    row = (level * WIDTH + feature).to(tl.int64)
    tl.store(features + row * count + n[:, None], total, mask=shown)


@triton.jit(do_not_specialize=["count", "by_point", "by_feature"])
def _backward_table(  # type: ignore[no-untyped-def]
    positions, resolutions, offsets, hashed, mask, gradient, by_point, by_feature, to_table, count,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, RUNS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Each of RUNS runs of STEPS points adds to the table when its cell changes, and at its end.

    The 8 corners of a run are adjacent threads, so that additions to neighbours along x are coalesced: they share 32
    bytes of memory on dense levels, and every second time on hashed ones. Runs and corners share one tensor axis,
    because Triton's versions differ in which of two axes is laid along the threads of a warp.
    """
    level = tl.program_id(1)
    resolution, offset, is_hashed, times_y, times_z = _level(level, resolutions, offsets, hashed)
    lane = tl.arange(0, 8 * RUNS)
    start = (tl.program_id(0).to(tl.int64) * RUNS + lane // 8) * STEPS
    corner = lane % 8
    feature = tl.arange(0, PADDED)[None, :]
    stored = feature < WIDTH
    first = to_table + offset * WIDTH
    row = (level * WIDTH + feature).to(tl.int64) * by_feature
    at = tl.full([8 * RUNS], -1, tl.int64)
    pending = tl.zeros([8 * RUNS, PADDED], to_table.dtype.element_ty)
    for step in range(STEPS):
        n = start + step
        inside = n < count
        i, j, k, x, y, z = _cells(positions, n, inside, resolution)
        entry = tl.where(inside, _entry(i, j, k, corner, is_hashed, times_y, times_z, mask), at)
        moved = entry != at
        full = (moved & (at >= 0))[:, None]
        tl.atomic_add(first + at[:, None] * WIDTH + feature, pending, mask=full & stored, sem="relaxed")
        near = _side(x, corner & 1) * _side(y, (corner >> 1) & 1) * _side(z, corner >> 2)
        change = tl.load(gradient + n[:, None] * by_point + row, mask=inside[:, None] & stored, other=0.0)
        added = near[:, None].to(pending.dtype) * change.to(pending.dtype)
        pending = tl.where(moved[:, None], added, pending + added)
        at = entry
    tl.atomic_add(first + at[:, None] * WIDTH + feature, pending, mask=(at >= 0)[:, None] & stored, sem="relaxed")


@triton.jit(do_not_specialize=["count", "by_point", "by_feature"])
def _backward_positions(  # type: ignore[no-untyped-def]
    positions, table, resolutions, offsets, hashed, mask, gradient, by_point, by_feature, to_positions, count, levels,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """All levels of a block of points in one program, which writes each gradient once."""
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    feature = tl.arange(0, PADDED)[None, :]
    inside = n < count
    shown = inside[:, None] & (feature < WIDTH)
    kind: tl.constexpr = to_positions.dtype.element_ty
    to_x = tl.zeros([BLOCK], kind)
    to_y = tl.zeros([BLOCK], kind)
    to_z = tl.zeros([BLOCK], kind)
    for level in range(levels):
        resolution, offset, is_hashed, times_y, times_z = _level(level, resolutions, offsets, hashed)
        i, j, k, x, y, z = _cells(positions, n, inside, resolution)
        first = table + offset * WIDTH
        row = (level * WIDTH + feature).to(tl.int64) * by_feature
        change = tl.load(gradient + n[:, None] * by_point + row, mask=shown, other=0.0)
        change = change.to(kind) * resolution.to(kind)
        for corner in tl.static_range(8):
            entry = _entry(i, j, k, corner, is_hashed, times_y, times_z, mask)
            value = tl.load(first + entry[:, None] * WIDTH + feature, mask=shown, other=0.0)
            along = tl.sum(value.to(kind) * change, axis=1)
            side_x, side_y, side_z = _side(x, corner & 1), _side(y, (corner >> 1) & 1), _side(z, corner >> 2)
            to_x += (2 * (corner & 1) - 1) * along * side_y * side_z
            to_y += (2 * ((corner >> 1) & 1) - 1) * along * side_x * side_z
            to_z += (2 * (corner >> 2) - 1) * along * side_x * side_y
    tl.store(to_positions + 3 * n, to_x, mask=inside)
    tl.store(to_positions + 3 * n + 1, to_y, mask=inside)
    tl.store(to_positions + 3 * n + 2, to_z, mask=inside)
