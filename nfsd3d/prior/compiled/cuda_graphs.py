"""CUDA graphs: the kernels of a function are captured once and replayed as a whole.

Problem: a network is hundreds of small kernels, which finish faster than a program can launch them (launch-bound).
Idea: `torch.cuda.make_graphed_callables` captures the forward and the backward pass once for each input shape; a replay
is a single launch.
"""

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UPS = 3
"""Runs before the capture: compilers compile, and cudnn.benchmark chooses the fastest kernels."""


class CapturedGraph:
    """A function of tensors on one GPU, with its backward pass, captured as a CUDA graph for each input shape.

    All calls of one shape write their result to the same memory: use or copy it before the next call. The backward pass
    of a call must run before the next call of its shape. The function may read other tensors, such as weights, but has
    no data-dependent control flow.

    Args:
        function: of one or more tensors, to one.
        one_memory: graphs of all shapes share the memory of intermediate results. For a function without backward pass,
            with results that are copied before the next call of any shape.
    """

    def __init__(self, function: Callable[..., Tensor], *, one_memory: bool = False) -> None:
        self._function = function
        self._pool = torch.cuda.graph_pool_handle() if one_memory else None
        self._graphs: dict[object, Callable[..., Tensor]] = {}

    def __call__(self, *arguments: Tensor) -> Tensor:
        """The function's result, which the next call of this shape overwrites."""
        differentiated = torch.is_grad_enabled()
        key = differentiated, *((one.shape, one.dtype, differentiated and one.requires_grad) for one in arguments)
        if key not in self._graphs:
            self._graphs[key] = self._capture(arguments)
        return self._graphs[key](*arguments)

    def _capture(self, arguments: tuple[Tensor, ...]) -> Callable[..., Tensor]:
        # Every replay reads the memory of these copies.
        own = tuple(one.detach().clone().requires_grad_(one.requires_grad) for one in arguments)
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True
        try:
            with torch.cuda.device_of(own[0]):  # captures are of the current GPU only
                graph: Callable[..., Tensor] = torch.cuda.make_graphed_callables(  # type: ignore[assignment]
                    self._function, own, num_warmup_iters=WARM_UPS, pool=self._pool
                )
        finally:
            torch.backends.cudnn.benchmark = before
        return graph


def peak_bytes(device: torch.device | str) -> int:
    """Peak memory of tensors on a GPU so far, including what captured graphs use between arguments and results.

    Torch counts that memory as free, but nothing else can use it.
    """
    named = torch.device(device).index
    index = torch.cuda.current_device() if named is None else named
    captured = (
        segment["total_size"] - segment["allocated_size"]
        for segment in torch.cuda.memory_snapshot()
        if segment["device"] == index and tuple(segment["segment_pool_id"]) != (0, 0)
    )
    return torch.cuda.max_memory_allocated(device) + sum(captured)
