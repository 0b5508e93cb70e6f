"""The memory that autograd keeps for a backward pass."""

from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def saved_bytes(function: Callable[[], Result]) -> tuple[Result, int]:
    """A function's result, and the measured bytes that autograd keeps for its backward pass."""
    seen = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = function()
    return result, sum(seen.values())
