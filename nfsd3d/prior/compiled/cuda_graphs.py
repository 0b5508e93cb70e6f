"""CUDA graphs: what a function has the GPU do, recorded once and started again as a whole."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

WARM_UPS = 3
"""Runs before the one that is recorded: compilers compile, libraries find out which of their kernels is fastest."""


class Recorded:
    """A function of tensors on one GPU, with its backward pass, recorded when it first meets a shape.

    A network is hundreds of small kernels, which are over faster than a program can start them one by one.

    Every call of one shape has its result in the same memory: use it, or copy it, before the next. A call that is to
    be differentiated must be so before the next one of its shape. The function may read other tensors, such as
    weights, but nothing that changes its course.

    Args:
        function: of one or more tensors, to one.
        one_memory: all shapes share the memory of what is between arguments and result. For a function without
            backward pass, whose results are copied before the next call of any shape.
    """

    def __init__(self, function: Callable[..., Tensor], *, one_memory: bool = False) -> None:
        self._function = function
        self._pool = torch.cuda.graph_pool_handle() if one_memory else None
        self._graphs: dict[object, Callable[..., Tensor]] = {}

    def __call__(self, *arguments: Tensor) -> Tensor:
        """The function's result, which the next call writes over."""
        differentiated = torch.is_grad_enabled()
        key = differentiated, *((one.shape, one.dtype, differentiated and one.requires_grad) for one in arguments)
        if key not in self._graphs:
            self._graphs[key] = self._record(arguments)
        return self._graphs[key](*arguments)

    def _record(self, arguments: tuple[Tensor, ...]) -> Callable[..., Tensor]:
        # Their memory is read by every later call.
        own = tuple(one.detach().clone().requires_grad_(one.requires_grad) for one in arguments)
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True
        try:
            with torch.cuda.device_of(own[0]):  # recorded is what the current GPU is told to do
                # Its type says that it may be a module, and its result anything.
                recorded: Any = torch.cuda.make_graphed_callables(
                    self._function, own, num_warmup_iters=WARM_UPS, pool=self._pool
                )
        finally:
            torch.backends.cudnn.benchmark = before
        return recorded


def peak_bytes(device: torch.device | str) -> int:
    """The most that tensors took on a GPU so far, what recordings use between arguments and results included.

    That counts as free for torch, but nobody else can have it.
    """
    named = torch.device(device).index
    index = torch.cuda.current_device() if named is None else named
    recordings = (
        segment["total_size"] - segment["allocated_size"]
        for segment in torch.cuda.memory_snapshot()
        if segment["device"] == index and tuple(segment["segment_pool_id"]) != (0, 0)
    )
    return torch.cuda.max_memory_allocated(device) + sum(recordings)
