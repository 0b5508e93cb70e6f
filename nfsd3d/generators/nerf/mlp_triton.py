"""A fused MLP of one hidden ReLU layer in Triton, for CUDA: one kernel forward, one backward (as in tiny-cuda-nn).

float32 or float64. No two programs write to the same address: results are deterministic on one kind of device.

Design note. Problem: in torch such an MLP is two matrix products and a ReLU, which write the hidden layer of every
point to memory and read it back; float32 lacks the memory, and the field's network dominates rendering. Idea: kernels
that keep the hidden layer in registers, read only the features and write only the outputs; the backward kernel
recomputes the hidden layer. With tensor cores, factors are rounded to TF32. Measured on an H100, 4.1 million points,
forward and backward: 1.13 ms with TF32, 8.00 ms in float32, torch in float32 5.70 ms (docs/benchmarks.md, "Stable
Diffusion on a GPU"); without tensor cores the kernels therefore save memory, not time.
"""

from typing import Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from nfsd3d.generators.nerf.autograd import Context
from nfsd3d.generators.nerf.launch_triton import INTERPRETED, check_device, launch, power_of_two

# Minimum rows and columns of Triton's matrix products.
SMALLEST = 16
# Rows of a product on Hopper's tensor cores (wgmma). With fewer, Triton falls back to Ampere's instructions; every warp
# then holds the whole gradient of the weights, which no longer fits into registers.
ROWS = 64
# Maximum number of padded hidden weights, whose gradient the 128 threads of a program keep in registers, and of hidden
# units. Beyond these, register spilling makes the kernel about as slow as torch.
LARGEST = 2048
LARGEST_ON_TENSOR_CORES = 4096
MOST_UNITS = 128
# Points of one tile. With tensor cores ROWS, because points are the rows of some products. Without, a thread holds
# whole rows of the factors, and has registers for half as many.
# The interpreter's time is proportional to the number of operations, whatever their size.
TENSOR_CORE_BLOCK = 512 if INTERPRETED else ROWS
PLAIN_BLOCK = 512 if INTERPRETED else 32
# No software pipelining: while a tile is loaded, other programs of the multiprocessor compute. A prefetched tile would
# go to shared memory in the layout of the products, with bank conflicts between a warp's threads, which load
# neighbouring points (4.1 million points on an H100: 1.4 ms instead of .3).
STAGES = 1
# Persistent programs per multiprocessor of the GPU: so many forward programs are resident (32 features, 64 units,
# compiled for sm_90: 128 registers a thread; of the backward ones, with 247 registers, two). Each program loops over
# many tiles, loads the weights once and adds up their gradients.
PROGRAMS = 4
PROGRAMS_ON_CPU = 3


def fits(inputs: int, units: int, *, tensor_cores: bool) -> bool:
    """Whether the kernels' registers suffice for a hidden layer of ``units``."""
    padded_units = _padded_units(units, tensor_cores)
    largest = LARGEST_ON_TENSOR_CORES if tensor_cores else LARGEST
    return padded_units <= MOST_UNITS and padded_units * _padded(inputs) <= largest


def perceptron(features: Tensor, hidden: Tensor, output: Tensor, *, tensor_cores: bool) -> Tensor:
    """[N,O] ``output`` [O,H] times relu(``hidden`` [H,I] times each row of ``features`` [N,I]).

    ``tensor_cores``: factors of float32 products are rounded to TF32 (10 bits of mantissa), sums are not. Otherwise,
    and in float64, everything is computed in the precision of the inputs. Whatever the strides of ``features``, their
    gradient is stored feature by feature (strides 1, N), as the encoding's backward pass reads it.

    Raises InputError for tensors that are not on a GPU, except in Triton's interpreter.
    """
    check_device(features, "backend.field")
    return _Perceptron.apply(features, hidden, output, tensor_cores and _has_tf32(features))


class _Context(Context, Protocol):
    tensor_cores: bool


class _Perceptron(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, features: Tensor, hidden: Tensor, output: Tensor, tensor_cores: bool) -> Tensor:
        hidden, output = hidden.contiguous(), output.contiguous()
        count = features.shape[0]
        result = features.new_empty(count, output.shape[0])
        if count:
            launch(
                _forward,
                (_programs(features, tensor_cores),),
                features,
                *features.stride(),
                hidden,
                output,
                result,
                count,
                **_constants(features, hidden, output, tensor_cores),
            )
        ctx.save_for_backward(features, hidden, output)
        ctx.tensor_cores = tensor_cores
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        features, hidden, output = ctx.saved_tensors
        count = features.shape[0]
        programs = _programs(features, ctx.tensor_cores)
        wanted = ctx.needs_input_grad
        to_features = features.new_empty_strided(features.shape, (1, max(count, 1))) if wanted[0] else None
        # Partial sums, allocated for the maximum number of programs: the memory of many points is predicted from few,
        # so what does not grow with the points must not depend on them. An empty sum is zero.
        most = _most_programs(features)
        to_hidden = hidden.new_empty(most, *hidden.shape)[:programs] if wanted[1] else None
        to_output = output.new_empty(most, *output.shape)[:programs] if wanted[2] else None
        if count:
            launch(
                _backward,
                (programs,),
                features,
                *features.stride(),
                hidden,
                output,
                gradient.contiguous(),
                to_features,
                to_hidden,
                to_output,
                count,
                **_constants(features, hidden, output, ctx.tensor_cores),
            )
        return (
            to_features,
            None if to_hidden is None else to_hidden.sum(0),
            None if to_output is None else to_output.sum(0),
            None,
        )


def _has_tf32(features: Tensor) -> bool:
    """Whether TF32 products exist for ``features``: float32, on GPUs since Ampere (and in the interpreter)."""
    on_gpu = features.device.type == "cuda"
    return features.dtype == torch.float32 and (
        not on_gpu or torch.cuda.get_device_capability(features.device) >= (8, 0)
    )


def _programs(features: Tensor, tensor_cores: bool) -> int:
    """The number of programs that share the tiles; at most one per tile."""
    tiles = triton.cdiv(features.shape[0], TENSOR_CORE_BLOCK if tensor_cores else PLAIN_BLOCK)
    return min(tiles, _most_programs(features))


def _most_programs(features: Tensor) -> int:
    if features.device.type != "cuda":
        return PROGRAMS_ON_CPU
    return PROGRAMS * torch.cuda.get_device_properties(features.device).multi_processor_count


def _padded(size: int) -> int:
    return max(power_of_two(size), SMALLEST)


def _padded_units(size: int, tensor_cores: bool) -> int:
    return max(_padded(size), ROWS if tensor_cores else SMALLEST)


def _constants(features: Tensor, hidden: Tensor, output: Tensor, tensor_cores: bool) -> dict[str, int]:
    units, inputs = hidden.shape
    return {
        "INPUTS": inputs,
        "UNITS": units,
        "OUTPUTS": output.shape[0],
        "PADDED_INPUTS": _padded(inputs),
        "PADDED_UNITS": _padded_units(units, tensor_cores),
        "PADDED_OUTPUTS": _padded(output.shape[0]),
        "BLOCK": TENSOR_CORE_BLOCK if tensor_cores else PLAIN_BLOCK,
        "TENSOR_CORES": tensor_cores,
        # A compile-time constant, so that the loads of neighbouring threads are coalesced.
        "BY_FEATURE": features.stride(0) == 1,
        "num_stages": STAGES,
    }


# --- kernels ---------------------------------------------------------------------------------------------------------
# The number of points and the strides vary between calls; "do_not_specialize" avoids a compilation for each value.
# Points are counted in int64. Tiles are [values of a point, points], so that loads and stores of neighbouring points
# are coalesced. Transpositions give the tensor cores ROWS rows. Padding is zero and adds nothing.


@triton.jit
def _rounded(x, TENSOR_CORES: tl.constexpr):  # type: ignore[no-untyped-def]
    """``x`` rounded to the nearest TF32. Tensor cores would truncate the 13 surplus bits, always towards zero, and the
    errors would accumulate. (Veltkamp's splitting; NaN stays NaN, and values beyond 4e34 become NaN.)
    """
    if TENSOR_CORES:
        large = x * 8193.0
        x = large - (large - x)
    return x


@triton.jit
def _product(a, b, TENSOR_CORES: tl.constexpr):  # type: ignore[no-untyped-def]
    """[M,N] of [M,K] and [K,N]."""
    return tl.dot(a, b, input_precision="tf32" if TENSOR_CORES else "ieee", out_dtype=a.dtype)


@triton.jit
def _matrix(  # type: ignore[no-untyped-def]
    values, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PADDED_HEIGHT: tl.constexpr, PADDED_WIDTH: tl.constexpr,
    TENSOR_CORES: tl.constexpr,
):  # fmt: skip
    """The weights [HEIGHT, WIDTH], padded."""
    row = tl.arange(0, PADDED_HEIGHT)[:, None]
    column = tl.arange(0, PADDED_WIDTH)[None, :]
    loaded = tl.load(values + row * WIDTH + column, mask=(row < HEIGHT) & (column < WIDTH), other=0.0)
    return _rounded(loaded, TENSOR_CORES)


@triton.jit
def _features(  # type: ignore[no-untyped-def]
    features, by_point, by_feature, n, count,
    INPUTS: tl.constexpr, PADDED_INPUTS: tl.constexpr, TENSOR_CORES: tl.constexpr, BY_FEATURE: tl.constexpr,
):  # fmt: skip
    """[PADDED_INPUTS, BLOCK] features of the points ``n``; zeros outside."""
    feature = tl.arange(0, PADDED_INPUTS)[:, None]
    place = n[None, :] if BY_FEATURE else n[None, :] * by_point
    shown = (feature < INPUTS) & (n < count)[None, :]
    return _rounded(tl.load(features + place + feature.to(tl.int64) * by_feature, mask=shown, other=0.0), TENSOR_CORES)


@triton.jit(do_not_specialize=["by_point", "by_feature", "count"])
def _forward(  # type: ignore[no-untyped-def]
    features, by_point, by_feature, hidden, output, result, count,
    INPUTS: tl.constexpr, UNITS: tl.constexpr, OUTPUTS: tl.constexpr,
    PADDED_INPUTS: tl.constexpr, PADDED_UNITS: tl.constexpr, PADDED_OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr, TENSOR_CORES: tl.constexpr, BY_FEATURE: tl.constexpr,
):  # fmt: skip
    first = _matrix(hidden, UNITS, INPUTS, PADDED_UNITS, PADDED_INPUTS, TENSOR_CORES)
    second = _matrix(output, OUTPUTS, UNITS, PADDED_OUTPUTS, PADDED_UNITS, TENSOR_CORES)
    row = tl.arange(0, PADDED_OUTPUTS)[None, :]
    for block in range(tl.program_id(0), tl.cdiv(count, BLOCK), tl.num_programs(0)):
        n = block * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
        x = _features(features, by_point, by_feature, n, count, INPUTS, PADDED_INPUTS, TENSOR_CORES, BY_FEATURE)
        h = _product(first, x, TENSOR_CORES)
        # A NaN compares false and is kept, as in torch.
        h = _rounded(tl.where(h < 0, 0.0, h), TENSOR_CORES)
        y = _product(tl.trans(h), tl.trans(second), TENSOR_CORES)
        tl.store(result + n[:, None] * OUTPUTS + row, y, mask=(n < count)[:, None] & (row < OUTPUTS))


@triton.jit(do_not_specialize=["by_point", "by_feature", "count"])
def _backward(  # type: ignore[no-untyped-def]
    features, by_point, by_feature, hidden, output, gradient, to_features, to_hidden, to_output, count,
    INPUTS: tl.constexpr, UNITS: tl.constexpr, OUTPUTS: tl.constexpr,
    PADDED_INPUTS: tl.constexpr, PADDED_UNITS: tl.constexpr, PADDED_OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr, TENSOR_CORES: tl.constexpr, BY_FEATURE: tl.constexpr,
):  # fmt: skip
    """The gradients that are not None."""
    program = tl.program_id(0)
    first = _matrix(hidden, UNITS, INPUTS, PADDED_UNITS, PADDED_INPUTS, TENSOR_CORES)
    second = _matrix(output, OUTPUTS, UNITS, PADDED_OUTPUTS, PADDED_UNITS, TENSOR_CORES)
    feature = tl.arange(0, PADDED_INPUTS)
    row = tl.arange(0, PADDED_OUTPUTS)[None, :]
    of_hidden = tl.zeros([PADDED_UNITS, PADDED_INPUTS], hidden.dtype.element_ty)
    of_output = tl.zeros([PADDED_UNITS, PADDED_OUTPUTS], output.dtype.element_ty)
    for block in range(program, tl.cdiv(count, BLOCK), tl.num_programs(0)):
        n = block * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
        inside = n < count
        x = _features(features, by_point, by_feature, n, count, INPUTS, PADDED_INPUTS, TENSOR_CORES, BY_FEATURE)
        change = tl.load(gradient + n[:, None] * OUTPUTS + row, mask=inside[:, None] & (row < OUTPUTS), other=0.0)
        change = _rounded(change, TENSOR_CORES)
        h = _product(first, x, TENSOR_CORES)
        if to_output is not None:
            of_output += _product(_rounded(tl.where(h < 0, 0.0, h), TENSOR_CORES), change, TENSOR_CORES)
        if to_features is not None or to_hidden is not None:
            back = _product(tl.trans(second), tl.trans(change), TENSOR_CORES)
            back = _rounded(tl.where(h <= 0, 0.0, back), TENSOR_CORES)
            if to_hidden is not None:
                of_hidden += _product(back, tl.trans(x), TENSOR_CORES)
            if to_features is not None:
                to_x = tl.trans(_product(tl.trans(back), first, TENSOR_CORES))
                place = feature[:, None].to(tl.int64) * count + n[None, :]
                tl.store(to_features + place, to_x, mask=(feature < INPUTS)[:, None] & inside[None, :])
    unit = tl.arange(0, PADDED_UNITS)[:, None]
    if to_hidden is not None:
        place = (program * UNITS + unit) * INPUTS + feature[None, :]
        tl.store(to_hidden + place, of_hidden, mask=(unit < UNITS) & (feature < INPUTS)[None, :])
    if to_output is not None:
        place = (program * OUTPUTS + row) * UNITS + unit
        tl.store(to_output + place, of_output, mask=(unit < UNITS) & (row < OUTPUTS))
