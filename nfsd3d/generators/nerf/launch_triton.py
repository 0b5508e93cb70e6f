"""Launch of Triton kernels, on a GPU or in Triton's interpreter on the CPU.

Triton chooses when it is imported: with ``TRITON_INTERPRET=1`` in the environment every kernel runs in the interpreter
(numpy, slow, for tests). Only Triton kernel modules import this one, and those are imported on first use.
"""

import torch
import triton
from torch import Tensor

from nfsd3d.errors import InputError

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether the kernels run in Triton's interpreter."""


def check_device(tensor: Tensor, setting: str) -> None:
    """Raises InputError, naming the ``setting`` that chose Triton, if its kernels cannot process ``tensor``."""
    if tensor.device.type != "cuda" and not INTERPRETED:
        raise InputError(
            f"{setting}=triton works on CUDA only (and, for tests, in Triton's interpreter: TRITON_INTERPRET=1); "
            f"choose {setting}=numba or torch, or machine=cuda"
        )


def launch(
    kernel: triton.JITFunction, programs: tuple[int, ...], *arguments: Tensor | float | None, **constants: int
) -> None:
    """Runs a kernel as a grid of ``programs`` on the device of its first argument, a tensor.

    Fused multiply-adds are disabled, so that products and sums are rounded one by one, as by torch's operations. A
    fused one would move a position within a fine cell by more than the tests' tolerance, and could move a sample
    across a cell's border. The kernels are memory-bound, so this costs no time. Matrix products are fused regardless.
    """
    first = arguments[0]
    assert isinstance(first, Tensor)
    with torch.cuda.device_of(first):
        kernel[programs](*arguments, enable_fp_fusion=False, **constants)


def power_of_two(count: int) -> int:
    """The smallest power of two >= ``count``; the sizes of Triton's tensors must be powers of two."""
    return 1 << max(count - 1, 0).bit_length()
