"""Tensors on their way from the CPU to a GPU."""

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
