"""The presets' networks at full size without weights, to predict memory and count parameters and FLOPs.

Sizes are those of diffusers 0.42.1: the defaults of a model's class, and its scripts that convert the published
weights (scripts/convert_*_to_diffusers.py); those of Stable Diffusion XL are in table 1 of 2307.01952. A model from a
folder may have others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from nfsd3d.context import Context
from nfsd3d.errors import InputError
from nfsd3d.prior.architectures import AUTOENCODER
from nfsd3d.prior.diffusers_prior import DiffusersPrior
from nfsd3d.prior.families.table import FAMILIES, PRESETS
from nfsd3d.prior.schedule import RectifiedFlow, VariancePreserving, stable_diffusion_alphas


@dataclass(frozen=True)
class FullSize:
    """Classes of diffusers and their settings, and what one prompt is: shapes of numbers, and the length of a mask.

    ``depth`` names the setting that repeats the same block, for counting where the denoiser reads values.
    """

    denoiser: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    conditions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    mask: int = 0
    vae: Mapping[str, Any] = field(default_factory=dict)
    autoencoder: str = "AutoencoderKL"
    prediction_type: str = "flow"
    depth: str = ""


# Stable Diffusion's autoencoder with 16 channels, and without the convolutions around the latents.
_VAE_16 = {**AUTOENCODER, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
_VAE_4 = {**AUTOENCODER, "scaling_factor": 0.13025}
_DC_AE = {
    "latent_channels": 32,
    "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "encoder_qkv_multiscales": ((),) * 3 + ((5,),) * 3,
    "decoder_qkv_multiscales": ((),) * 3 + ((5,),) * 3,
    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
    "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
    "downsample_block_type": "conv",
    "upsample_block_type": "interpolate",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "scaling_factor": 0.41407,
}
_SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_KOLORS = {
    **_SDXL,
    "encoder_hid_dim_type": "text_proj",
    "encoder_hid_dim": 4096,
    "projection_class_embeddings_input_dim": 6 * 256 + 4096,
}
_SD3 = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192}
_SD3_WORDS = {"embeddings": (77 + 256, 4096), "pooled": (2048,)}

FULL_SIZES: dict[str, FullSize] = {
    "sdxl": FullSize(
        "UNet2DConditionModel",
        _SDXL,
        {"embeddings": (77, 2048), "pooled": (1280,)},
        vae=_VAE_4,
        prediction_type="epsilon",
    ),
    "kolors": FullSize(
        "UNet2DConditionModel",
        _KOLORS,
        {"embeddings": (256, 4096), "pooled": (4096,)},
        vae=_VAE_4,
        prediction_type="epsilon",
    ),
    "sd3": FullSize("SD3Transformer2DModel", _SD3, _SD3_WORDS, vae=_VAE_16),
    "sd35": FullSize(
        "SD3Transformer2DModel",
        {**_SD3, "pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13))},
        _SD3_WORDS,
        vae=_VAE_16,
    ),
    "sana": FullSize(
        "SanaTransformer2DModel", {}, {"embeddings": (300, 2304)}, 300, vae=_DC_AE, autoencoder="AutoencoderDC"
    ),
    "pixart": FullSize(
        "PixArtTransformer2DModel",
        {
            "sample_size": 64,
            "caption_channels": 4096,
            "norm_type": "ada_norm_single",
            "use_additional_conditions": False,
        },
        {"embeddings": (300, 4096)},
        300,
        vae=_VAE_4,
        prediction_type="epsilon",
    ),
    "prx": FullSize("PRXTransformer2DModel", {"axes_dim": [32, 32]}, {"embeddings": (256, 2304)}, 256, vae=_VAE_16),
    "auraflow": FullSize("AuraFlowTransformer2DModel", {}, {"embeddings": (256, 2048)}, vae=_VAE_4),
    "lumina2": FullSize(
        "Lumina2Transformer2DModel",
        {"cap_feat_dim": 2304},
        {"embeddings": (256, 2304)},
        256,
        vae=_VAE_16,
        depth="num_layers",
    ),
    "zimage": FullSize("ZImageTransformer2DModel", {}, {"embeddings": (512, 2560)}, 512, vae=_VAE_16, depth="n_layers"),
    "cogview4": FullSize(
        "CogView4Transformer2DModel",
        {"num_layers": 28, "attention_head_dim": 128, "num_attention_heads": 32},
        {"embeddings": (224, 4096)},
        224,
        vae=_VAE_16,
        depth="num_layers",
    ),
    "chroma": FullSize("ChromaTransformer2DModel", {}, {"embeddings": (512, 4096)}, 512, vae=_VAE_16),
}
"""Sizes by the name of the preset."""


class _Blank:
    """Text encoders that are gone: only the shapes of what they gave."""

    def __init__(self, size: FullSize) -> None:
        self._size = size

    def networks(self) -> list[nn.Module]:
        return []

    def free(self) -> None:
        pass

    def embed(self, prompts: list[str], negative: object) -> Context:
        raise InputError("prior: a prior of random weights has no text encoders")

    def blank(self, count: int, device: torch.device) -> Context:
        tensors = {name: torch.ones(count, *shape, device=device) for name, shape in self._size.conditions.items()}
        if self._size.mask:
            tensors["mask"] = torch.ones(count, self._size.mask, dtype=torch.bool, device=device)
        return Context(tensors)


def full_size_prior(
    name: str,
    image_size: int | None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "meta",
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> DiffusersPrior:
    """The prior of the preset ``name`` at full size, without text encoders; on the meta device without memory.

    ``changes`` are settings of the denoiser.
    """
    import diffusers

    size = FULL_SIZES[name]
    with torch.device(device):
        denoiser = getattr(diffusers, size.denoiser)(**{**size.settings, **changes})
        vae = getattr(diffusers, size.autoencoder)(**size.vae)
    for network in (denoiser, vae):
        nn.Module.to(network, dtype)
    family = FAMILIES[PRESETS[name].family]
    if image_size is None and not hasattr(denoiser.config, "sample_size"):
        raise InputError(family.no_own_size)
    flow = size.prediction_type == "flow"
    return DiffusersPrior(
        denoiser,
        vae,
        _Blank(size),
        RectifiedFlow() if flow else VariancePreserving(stable_diffusion_alphas()),
        size.prediction_type,
        family=family,
        image_size=image_size,
    )
