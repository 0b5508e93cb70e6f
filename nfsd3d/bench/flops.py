"""FLOPs of a diffusion model, and the peak FLOP/s of a device."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from nfsd3d.bench.clock import now
from nfsd3d.prior.architectures import random_networks

TERA = 1e12
MATRIX = {"cpu": 1024, "cuda": 8192}
"""Side of the matrices for the measurement of a device's speed."""


@dataclass(frozen=True)
class Arithmetic:
    """TFLOP of a model's parts for one image: ``unet`` one evaluation, ``encode`` and its ``backward`` to the image."""

    unet: float
    encode: float
    backward: float
    decode: float

    def step(self, evaluations: float, images: int) -> float:
        """The minimal TFLOP of a step with this many ``evaluations`` of the UNet in total."""
        return evaluations * self.unet + images * (self.encode + self.backward)


@cache
def arithmetic(name: str, image_size: int) -> Arithmetic:
    """Counted on networks without weights; ``name`` is a key of ``architectures.ARCHITECTURES``."""
    unet, vae, text_encoder = random_networks(name, "meta", image_size=image_size)
    latent = torch.empty(1, 4, unet.config.sample_size, unet.config.sample_size, device="meta")
    context = torch.empty(1, 77, text_encoder.config.hidden_size, device="meta")
    for network in (unet, vae):
        network.requires_grad_(False)
    image = torch.empty(1, 3, image_size, image_size, device="meta", requires_grad=True)
    counts = []
    with torch.no_grad():
        counts.append(_counted(lambda: unet(latent, torch.zeros(1, device="meta"), context)))
        counts.append(_counted(lambda: vae.decode(latent)))
    forward, encoded = _counted(lambda: vae.encode(image).latent_dist.mean)
    backward, _ = _counted(lambda: encoded.sum().backward())
    (evaluation, _), (decode, _) = counts
    return Arithmetic(evaluation, forward, backward, decode)


def _counted(function: Callable[[], Any]) -> tuple[float, Any]:
    with FlopCounterMode(display=False) as counter:
        result = function()
    return counter.get_total_flops() / TERA, result


def device_tflops(device: torch.device, dtype: torch.dtype, *, rounds: int = 5) -> float:
    """TFLOP/s of large products of matrices: an upper bound for networks; the best of ``rounds``.

    A GPU multiplies float32 as cuDNN's convolutions do, in TF32.
    """
    side, calls, best = MATRIX[device.type], 10, float("inf")
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else before)
    try:
        a @ b
        for _ in range(rounds):
            started = now(device)
            for _ in range(calls):
                a @ b
            best = min(best, now(device) - started)
    finally:
        torch.set_float32_matmul_precision(before)
    return calls * 2 * side**3 / best / TERA
