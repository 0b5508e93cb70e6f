"""Asynchronous copies to a GPU, and a second CUDA stream for values that the CPU has to read."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor


def move(tensor: Tensor, device: torch.device | str) -> Tensor:
    """``tensor`` on ``device``; a copy from CPU to GPU is asynchronous.

    Such a copy goes through pinned memory, because one from pageable memory waits for all earlier work of the GPU. A
    copy from GPU to CPU does synchronise, so that its values can be read.
    """
    if tensor.device.type == "cpu" and torch.device(device).type == "cuda":
        # Elements of an expanded tensor share memory, and such a tensor cannot be pinned as it is.
        return tensor.contiguous().pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class SideStream:
    """A second CUDA stream, on which the CPU can read a value without waiting for the previous training step.

    Design note. Problem: the CPU has to read how many samples the rays have, to allocate them. On torch's default
    stream that value comes after all work queued before it, the previous step's backward pass included: the CPU waits
    for the GPU, and then the GPU, its queue empty, for the CPU. Idea: compute the value on a stream of its own, which
    waits only for those inputs that have changed. Measured (docs/benchmarks.md, "Stable Diffusion on a GPU"): this is
    the one place where a step of any method synchronises. ``generator.prune_alpha`` and shading add one synchronisation
    each; their counts depend on the current weights and cannot be read ahead.
    """

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None
        self._read: Tensor | None = None
        self._version = -1

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return type(self)()

    @contextmanager
    def ahead(self, read: Tensor, *inputs: Tensor | None) -> Iterator[Callable[[Iterable[Tensor | None]], None]]:
        """Runs the block's GPU work on the second stream; work after the block waits for it on the GPU.

        The block may use two kinds of tensors that the default stream writes. ``read``: the second stream waits for
        the default one only if this tensor has changed since the last call. ``inputs``: it waits if one of them is on
        a GPU.

        Yields a function to call with the tensors that are used after the block: their memory, which belongs to the
        second stream, is not reused before the default stream is done with them. On a CPU nothing of this happens.
        """
        if read.device.type != "cuda":
            yield lambda tensors: None
            return
        default = torch.cuda.current_stream(read.device)
        stream = self._stream
        if stream is None or stream.device != read.device:
            stream = self._stream = torch.cuda.Stream(read.device, priority=-1)
            self._read = None
        on_gpu = any(tensor is not None and tensor.device.type == "cuda" for tensor in inputs)
        if on_gpu or self._read is not read or self._version != read._version:
            stream.wait_stream(default)
            self._read, self._version = read, read._version

        def keep(tensors: Iterable[Tensor | None]) -> None:
            for tensor in tensors:
                if tensor is not None:
                    tensor.record_stream(default)

        try:
            with torch.cuda.stream(stream):
                yield keep
        finally:
            default.wait_stream(stream)
