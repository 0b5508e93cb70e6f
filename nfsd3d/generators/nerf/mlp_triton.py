"""A network of one hidden ReLU layer in Triton, for CUDA: one kernel forward, one backward, nothing hidden in memory.

float32 or float64. In torch such a network is two products and a ReLU, whose hidden layers go to memory and back; these
kernels read what goes in, write what comes out, and the backward one computes the hidden layer again. No two programs
write to one place: on one kind of device the results are the same from run to run.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from nfsd3d.generators.nerf.launch_triton import INTERPRETED, check_device, launch, power_of_two

# Rows and columns of Triton's products, at least.
SMALLEST = 16
# Rows that Hopper's tensor cores multiply together (wgmma): with fewer, Triton falls back to Ampere's instructions, and
# the gradients of the weights, whole in every warp, no longer fit into registers.
ROWS = 64
# Numbers of the padded hidden weights, whose gradient the 128 threads of a program have in their registers, and hidden
# units, at most: with more the registers spill so much that torch may be as fast.
LARGEST = 2048
LARGEST_ON_TENSOR_CORES = 4096
MOST_UNITS = 128
# Points of one tile: with tensor cores ROWS of them, as they are the rows of some products. Without, a thread holds
# whole rows of what it multiplies, and has registers for half as many.
# The interpreter's time goes with the number of operations, whatever their size.
TENSOR_CORE_BLOCK = 512 if INTERPRETED else ROWS
PLAIN_BLOCK = 512 if INTERPRETED else 32
# Each tile is loaded when its turn comes, and other programs of the multiprocessor compute meanwhile: to have the next
# one on its way, Triton would put it into shared memory as the products want it, where a warp's threads, that read
# neighbouring points, would write to one bank after the other (4.1 million points on an H100: 1.4 ms instead of .3).
STAGES = 1
# Programs for each of a GPU's multiprocessors: as many forward ones fit at a time (32 features, 64 units, compiled for
# sm_90: 128 registers a thread; backward, with 247 registers, two). Each walks over many
# tiles, loads the weights once and adds up their gradients.
PROGRAMS = 4
PROGRAMS_ON_CPU = 3


def fits(inputs: int, units: int, *, tensor_cores: bool) -> bool:
    """Whether the kernels have room for a hidden layer of so many ``units``."""
    padded_units = _padded_units(units, tensor_cores)
    largest = LARGEST_ON_TENSOR_CORES if tensor_cores else LARGEST
    return padded_units <= MOST_UNITS and padded_units * _padded(inputs) <= largest


def perceptron(features: Tensor, hidden: Tensor, output: Tensor, *, tensor_cores: bool) -> Tensor:
    """[N,O] ``output`` [O,H] times relu(``hidden`` [H,I] times each row of ``features`` [N,I]).

    ``tensor_cores``: factors of products in float32 are rounded to TF32 (10 bits behind the point), sums are not;
    otherwise, and in float64, all is computed as precisely as it is stored. Whatever the strides of ``features``, the
    gradient to them lies feature by feature in memory (strides 1, N), as the encoding's backward pass reads it.

    Raises InputError for tensors that are not on a GPU, unless Triton interprets.
    """
    check_device(features, "backend.field")
    return _Perceptron.apply(features, hidden, output, tensor_cores and _has_tf32(features))


class _Perceptron(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, hidden: Tensor, output: Tensor, tensor_cores: bool) -> Tensor:
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
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        features, hidden, output = ctx.saved_tensors
        count = features.shape[0]
        programs = _programs(features, ctx.tensor_cores)
        wanted = ctx.needs_input_grad
        to_features = features.new_empty_strided(features.shape, (1, max(count, 1))) if wanted[0] else None
        # Each program's own sums, in memory for the most there can be: what goes with the points is measured on few of
        # them to predict what many take. The sum of none is zero.
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
    """Whether there are such products of ``features``: of float32, on GPUs since Ampere (and in the interpreter)."""
    on_gpu = features.device.type == "cuda"
    return features.dtype == torch.float32 and (
        not on_gpu or torch.cuda.get_device_capability(features.device) >= (8, 0)
    )


def _programs(features: Tensor, tensor_cores: bool) -> int:
    """How many programs share the tiles: none has nothing to do."""
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
        # Known when compiled, so that threads that lie side by side read numbers that do.
        "BY_FEATURE": features.stride(0) == 1,
        "num_stages": STAGES,
    }


# --- kernels ---------------------------------------------------------------------------------------------------------
# Numbers of points and strides change from call to call: they are never compiled in ("do_not_specialize"). Points are
# counted in int64. Tiles are [numbers of a point, points]: points that lie side by side in memory are read and written
# side by side. What is transposed is so that the tensor cores have ROWS rows; padding is zero and adds nothing.


@triton.jit
def _rounded(x, TENSOR_CORES: tl.constexpr):  # type: ignore[no-untyped-def]
    """To the nearest TF32, whose 13 bits less tensor cores otherwise cut off: always towards zero, so that errors add
    up. (Veltkamp's splitting; NaN stays NaN, and what is beyond 4e34 becomes it.)
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
    """[PADDED_INPUTS, BLOCK] of the points ``n``; zeros outside."""
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
        # Compared so that NaN stays, as in torch.
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
    """What nobody wants is None, and left out."""
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
