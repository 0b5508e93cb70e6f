"""Checks that the networks of a model fit together, by their configurations and the headers of their weight files."""

from collections.abc import Mapping
from typing import Any

from nfsd3d.errors import InputError
from nfsd3d.prior.files.configs_and_headers import read_object, tensor_shapes
from nfsd3d.prior.files.folder_families import check_unet
from nfsd3d.prior.files.locate import ModelFiles

# What the classes of the networks take where a configuration does not say.
_UNET = {"in_channels": 4, "out_channels": 4, "cross_attention_dim": 1280, "sample_size": None}
_VAE = {"latent_channels": 4}
_TEXT_ENCODER = {"hidden_size": 512}


def check_files(files: ModelFiles) -> None:
    """Checks configurations and headers of the files of a model, before torch is imported.

    Raises:
        InputError: the networks do not fit together, or a weight file is damaged or in another format.
    """
    vae = files.folder / "vae" if files.vae is None or files.vae.is_file() else files.vae
    check_fit(
        _UNET | read_object(files.folder / "unet" / "config.json"),
        _VAE | read_object(vae / "config.json"),
        _TEXT_ENCODER | read_object(files.folder / "text_encoder" / "config.json"),
    )
    for path in files.weights():
        own = path if path == files.file else path.parent
        setting = f"prior.vae={path}" if path == files.vae or own == files.vae else f"prior.model: {path}"
        tensor_shapes(path, setting)


def check_fit(unet: Mapping[str, Any], vae: Mapping[str, Any], text_encoder: Mapping[str, Any]) -> None:
    """Checks the configurations of three networks of Stable Diffusion.

    Raises:
        InputError: they do not fit together, or are not those of a text-to-image model.
    """
    if not isinstance(unet["sample_size"], int):
        raise InputError(f"prior.model: a UNet with sample_size {unet['sample_size']}; square latents are needed")
    if unet["in_channels"] != vae["latent_channels"]:
        raise InputError(
            f"prior.model: the UNet takes {unet['in_channels']} channels and the autoencoder has "
            f"{vae['latent_channels']}; inpainting, depth and upscaling models cannot be used"
        )
    check_unet(dict(unet), "prior.model")
    if unet["cross_attention_dim"] != text_encoder["hidden_size"]:
        raise InputError(
            f"prior.model: the UNet attends to width {unet['cross_attention_dim']} and the text encoder has "
            f"{text_encoder['hidden_size']}"
        )
