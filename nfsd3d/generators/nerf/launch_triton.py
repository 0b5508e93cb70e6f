"""How the Triton kernels of this package are launched: on a GPU, or in Triton's interpreter on the CPU.

Triton decides when it is imported: ``TRITON_INTERPRET=1`` in the environment makes every kernel run in the
interpreter (numpy, slow, for tests). Only modules named ``*_triton`` import this one, and they when they are used.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from nfsd3d.errors import InputError

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether the kernels run in Triton's interpreter."""


def check_device(tensor: Tensor, setting: str) -> None:
    """Raises InputError where Triton kernels cannot work on ``tensor``; ``setting`` asked for them."""
    if tensor.device.type != "cuda" and not INTERPRETED:
        raise InputError(
            f"{setting}=triton works on CUDA only (and, for tests, in Triton's interpreter: TRITON_INTERPRET=1); "
            f"choose {setting}=numba or torch, or machine=cuda"
        )


def launch(kernel: Any, programs: tuple[int, ...], *arguments: Tensor | float | None, **constants: int) -> None:
    """Runs a kernel as a grid of ``programs`` on the device of its first argument, a tensor.

    Products and sums are rounded one by one, as torch's own operations round them: a fused multiply-add would move a
    position within a fine cell by more than the kernels may differ from their references, and a sample across the
    border of a cell. The kernels wait for memory, not for arithmetic. (Products of matrices are fused all the same.)
    """
    first = arguments[0]
    assert isinstance(first, Tensor)
    with torch.cuda.device_of(first):
        kernel[programs](*arguments, enable_fp_fusion=False, **constants)


def power_of_two(count: int) -> int:
    """The smallest power of two that is not below ``count``: sizes of Triton's tensors are powers of two."""
    return 1 << max(count - 1, 0).bit_length()
