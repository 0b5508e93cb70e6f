"""What measurements read the time from."""

import time

import torch


def now(device: torch.device) -> float:
    """Seconds on a clock; waits for the GPU, where there is one, before it looks."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
