"""Shapes and memory layouts of compiled networks: few batch sizes, one layout."""

import torch
from torch import Tensor


def padded_batch_size(count: int, unit: int, at_most: int | None = None) -> int:
    """The batch size to which ``count`` entries are padded: a multiple of ``unit``, below it a power of two.

    At most ``at_most``, unless ``count`` is larger.
    """
    padded: int = -(-count // unit) * unit if count >= unit else min(2 ** (count - 1).bit_length(), unit)
    return padded if at_most is None else max(count, min(padded, at_most))


def padded(values: Tensor, size: int) -> Tensor:
    """``values`` [N,...] with the last entry repeated up to [size,...]."""
    missing = size - len(values)
    return values if missing == 0 else torch.cat([values, values[-1:].expand(missing, *values.shape[1:])])


def channels_last(values: Tensor) -> Tensor:
    """``values`` [B,C,H,W] with exactly the strides of the channels-last memory format.

    The strides of a single entry or channel are ambiguous, and torch.compile specialises on every stride: hence a copy.
    """
    layout = torch.empty_like(values, memory_format=torch.channels_last)
    return values if values.stride() == layout.stride() else layout.copy_(values)
