"""Tensors on their way from the CPU to a GPU."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor


def move(tensor: Tensor, device: torch.device | str) -> Tensor:
    """``tensor`` on ``device``; a GPU gets it from the CPU without the program waiting for what the GPU does.

    By way of page-locked memory: a copy from ordinary memory starts only when the GPU's queue is empty. The other way
    round the program does wait, because the numbers are there to be read.
    """
    if tensor.device.type == "cpu" and torch.device(device).type == "cuda":
        # Of an expanded tensor many elements are one in memory, which cannot be page-locked as it is.
        return tensor.contiguous().pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class SideStream:
    """Where a GPU counts, while it is still busy with all that the program asked of it before.

    A number is there to be read when the GPU has come to it. In the one queue that torch has by default it stands
    behind the whole step before: the program waits for that, and the GPU, its queue empty, for the program. In a queue
    of its own the number is there at once.
    """

    def __init__(self) -> None:
        self._stream: Any = None
        self._read: Tensor | None = None
        self._version = -1

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)()

    @contextmanager
    def ahead(self, read: Tensor, *given: Tensor | None) -> Iterator[Callable[[Iterable[Tensor | None]], None]]:
        """Within the block a GPU's work goes into the second queue; what is behind the block waits for it on the GPU.

        Of what the first queue writes the block may use ``read``, for which the second waits when it has changed, and
        the tensors ``given``, for which it waits when one of them is on a GPU. The function that the block gets is for
        the tensors that outlive it: the memory of the second queue is for nothing else while they are in use.
        """
        if read.device.type != "cuda":
            yield lambda tensors: None
            return
        first = torch.cuda.current_stream(read.device)
        if self._stream is None or self._stream.device != read.device:
            self._stream = torch.cuda.Stream(read.device, priority=-1)
            self._read = None
        came = any(tensor is not None and tensor.device.type == "cuda" for tensor in given)
        if came or self._read is not read or self._version != read._version:
            self._stream.wait_stream(first)
            self._read, self._version = read, read._version

        def outlive(tensors: Iterable[Tensor | None]) -> None:
            for tensor in tensors:
                if tensor is not None:
                    tensor.record_stream(first)

        try:
            with torch.cuda.stream(self._stream):
                yield outlive
        finally:
            first.wait_stream(self._stream)
