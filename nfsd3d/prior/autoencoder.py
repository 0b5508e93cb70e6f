"""The autoencoder of a latent diffusion model: images to latents as the denoiser expects them, and back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor

from nfsd3d.prior.compiled.cuda_graphs import CapturedGraph
from nfsd3d.prior.compiled.encoder import frozen_encoder
from nfsd3d.prior.compiled.shapes import channels_last
from nfsd3d.prior.networks import first_weight

if TYPE_CHECKING:
    from collections.abc import Sequence

Result = TypeVar("Result")

INDUCTOR_OPTIONS: dict[str, str | int | bool | Callable[..., object]] = {
    "realize_reads_threshold": 32,
    "realize_acc_reads_threshold": 64,
}
"""For the encoder: normalisations are recomputed where the backward pass reads them, instead of stored in float32."""


class Autoencoder:
    """A diffusers autoencoder, frozen: AutoencoderKL, AutoencoderTiny or AutoencoderDC.

    It runs in the precision it was loaded in; images and latents are float32. Latents are shifted and scaled by the
    numbers of its own configuration: (z - mean) scale / std for each channel, or (z - shift) scale.
    """

    def __init__(self, network: Any, image_size: int, *, shifted: bool = True) -> None:
        """``image_size`` in pixels; unless ``shifted`` the configuration's shift is not applied."""
        self.network = network.eval().requires_grad_(False)
        self.image_size = image_size
        self._shifted = shifted
        self._compiled: Callable[[Tensor], Tensor] | None = None

    def with_network(self, network: Any) -> Autoencoder:
        """The same, not compiled, with another network of the same configuration."""
        other = copy.copy(self)
        other.network, other._compiled = network, None
        return other

    @property
    def is_compiled(self) -> bool:
        """Whether the encoder runs compiled."""
        return self._compiled is not None

    def compile(self, backend: str, *, graphs: bool) -> None:
        """Compiles the encoder; on CUDA it may also be captured as ``graphs``."""
        encode = partial(_encode, frozen_encoder(self.network))
        options = INDUCTOR_OPTIONS if backend == "inductor" else None
        compiled: Callable[[Tensor], Tensor] = torch.compile(encode, backend=backend, dynamic=False, options=options)
        self._compiled = CapturedGraph(compiled) if graphs else compiled

    def encode(self, image: Tensor, *, checkpoint: bool = False) -> Tensor:
        """[B,C,h,w] latents, float32, of images [B,3,H,W] in [0, 1]; differentiable.

        Images are resized bilinearly to ``image_size`` (with a low-pass filter when that shrinks them). Takes the
        posterior mean, so that the same image gives the same latent. With ``checkpoint`` the activations inside each
        block of the encoder (all activations of an AutoencoderTiny) are recomputed in the backward pass.
        """
        size = self.image_size
        if image.shape[-2:] != (size, size):
            shrinks = max(image.shape[-2:]) > size
            image = F.interpolate(image, (size, size), mode="bilinear", align_corners=False, antialias=shrinks)
        latent = self._encoder(channels_last((image * 2 - 1).to(first_weight(self.network).dtype)), checkpoint).float()
        if (statistics := self._statistics(latent)) is not None:
            mean, std = statistics
            return (latent - mean) * self._scale / std
        return (latent - self._shift) * self._scale

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """[B,3,image_size,image_size] images in [0, 1], float32, of latents [B,C,h,w]; no gradient."""
        if (statistics := self._statistics(z)) is not None:
            mean, std = statistics
            latent = z * std / self._scale + mean
        else:
            latent = z / self._scale + self._shift
        image = self.network.decode(latent.to(first_weight(self.network).dtype)).sample.float()
        # The decoder slightly overshoots its range, which is expected.
        return (image / 2 + 0.5).clamp(0, 1)

    def _encoder(self, image: Tensor, checkpoint: bool) -> Tensor:
        """The autoencoder's latents of images in [-1, 1], in its own precision and scale."""
        in_blocks = hasattr(self.network, "quant_conv")
        if checkpoint and not in_blocks:  # AutoencoderTiny's own checkpointing leaves out its scaling of the image
            return _checkpointed(partial(_encode, self.network), image)
        if in_blocks and checkpoint != self.network.is_gradient_checkpointing:
            if checkpoint:
                self.network.enable_gradient_checkpointing(_checkpointed)
            else:
                self.network.disable_gradient_checkpointing()
        if self._compiled is not None and not checkpoint:
            return self._compiled(image)
        return _encode(self.network, image)

    @property
    def _scale(self) -> float:
        return float(self.network.config.scaling_factor)

    @property
    def _shift(self) -> float:
        return float(getattr(self.network.config, "shift_factor", None) or 0.0) if self._shifted else 0.0

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """(mean, standard deviation) of the channels [1,C,1,1], where the configuration has them."""
        config = self.network.config
        mean: Sequence[float] | None = getattr(config, "latents_mean", None)
        std: Sequence[float] | None = getattr(config, "latents_std", None)
        if mean is None or std is None:
            return None
        return like.new_tensor(mean)[:, None, None], like.new_tensor(std)[:, None, None]


def pixels_per_latent(config: Any) -> int:
    """Pixels for each latent along each axis of an autoencoder with this configuration."""
    widths = getattr(config, "block_out_channels", None) or config.encoder_block_out_channels
    return int(2 ** (len(widths) - 1))


def _encode(network: Any, image: Tensor) -> Tensor:
    encoded = network.encode(image)
    if hasattr(encoded, "latent_dist"):  # AutoencoderKL
        latent: Tensor = encoded.latent_dist.mean
        return latent
    latent = encoded.latents if hasattr(encoded, "latents") else encoded.latent  # AutoencoderTiny; AutoencoderDC
    return latent


def _checkpointed(function: Callable[..., Result], *arguments: object) -> Result:
    """The function's result; its activations are recomputed in the backward pass."""
    # The networks draw no random numbers: there is no state to preserve.
    return torch.utils.checkpoint.checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
