"""Checks the files of a model before torch is imported: configurations, weight headers, schedule and tokenizer."""

from collections.abc import Mapping
from typing import Any

from nfsd3d.errors import InputError
from nfsd3d.prior.families.table import FAMILIES
from nfsd3d.prior.files.check_folder import check_unet
from nfsd3d.prior.files.check_numbers import check_multiple, check_numbers
from nfsd3d.prior.files.configs_and_headers import (
    check_not_quantised,
    optional_object,
    read_object,
    shapes_in,
    tensor_shapes,
)
from nfsd3d.prior.files.count_tokens import TokenCounter, read_tokens
from nfsd3d.prior.files.family_folder import (
    PromptCounter,
    check_family_folder,
    check_image_size,
    prompt_counters,
)
from nfsd3d.prior.files.folder import ModelFiles
from nfsd3d.prior.files.lora_files import check_widths
from nfsd3d.prior.files.scheduler_config import TrainingSchedule, read_training
from nfsd3d.prior.files.weight_files import weight_files

# What the classes of the networks take where a configuration does not say.
_UNET = {"in_channels": 4, "out_channels": 4, "cross_attention_dim": 1280, "sample_size": None}
_VAE = {"latent_channels": 4, "scaling_factor": 0.18215}
_TEXT_ENCODER = {"hidden_size": 512}

_LARGEST_SAMPLE = 4096  # latents, of images of 32,768 pixels


def check_files(
    files: ModelFiles, image_size: int | None = None
) -> tuple[TrainingSchedule, TokenCounter | tuple[PromptCounter, ...]]:
    """The noise schedule and the tokenizer (of a family: tokenizers) of a model on this machine, if its parts fit.

    Raises:
        InputError: they do not, or a file is damaged or in another format; the message names it.
    """
    if files.family is not None:
        family = FAMILIES[files.family]
        training = check_family_folder(files.folder, family, "prior.model")
        check_image_size(files.folder, family, image_size)
        weights = weight_files(files.folder / family.denoiser, "prior.model")[1] if files.loras else []
        check_widths(files.loras, shapes_in(weights))
        return training, tuple(prompt_counters(files.folder, family, "prior.model"))
    check_autoencoder(files)
    if image_size is not None:
        check_multiple(image_size, _factor(read_object(files.config("vae"))), "this model")
    check_fit(*(read_object(files.config(network)) for network in ("unet", "vae", "text_encoder")))
    for path in files.weights():
        own = path if path in (files.file, files.vae) else path.parent
        setting = f"prior.vae={path}" if own == files.vae else f"prior.model: {path}"
        tensor_shapes(path, setting)
        check_not_quantised(path, setting)
    if files.loras and files.file is None:
        check_widths(files.loras, shapes_in(files.weights_of("unet")))
    return read_training(files.folder), read_tokens(files.part("tokenizer").parent)


def check_autoencoder(files: ModelFiles) -> None:
    """Raises `InputError` unless another autoencoder has the latents that the UNet was trained with.

    Size and scale are compared if the configuration of the model's own autoencoder exists.
    """
    if files.vae is None or files.vae.is_file():
        return
    vae, own = read_object(files.vae / "config.json", "prior.vae"), optional_object(files.part("vae") / "config.json")
    channels = optional_object(files.config("unet")).get("in_channels", _UNET["in_channels"])
    compared = [("channels", vae.get("latent_channels", _VAE["latent_channels"]), channels)]
    if own:
        compared.append(("pixels per latent and axis", _factor(vae), _factor(own)))
    if vae.get("_class_name") == own.get("_class_name") == "AutoencoderKL":  # AutoencoderTiny scales its latents itself
        usual = _VAE["scaling_factor"]
        compared.append(("scaling_factor", vae.get("scaling_factor", usual), own.get("scaling_factor", usual)))
    different = [f"{name} {found!r} instead of {expected!r}" for name, found, expected in compared if found != expected]
    if different:
        raise InputError(
            f"prior.vae: {files.vae} has {', '.join(different)}, so its latents are not those of the model; choose an "
            "autoencoder made for it, or leave prior.vae out"
        )


def _factor(vae: Mapping[str, Any]) -> int:
    """Pixels per latent and axis of an autoencoder."""
    blocks = vae.get("block_out_channels") or vae.get("encoder_block_out_channels")
    return int(2 ** (len(blocks) - 1)) if isinstance(blocks, list) else 1


def check_fit(unet: Mapping[str, Any], vae: Mapping[str, Any], text_encoder: Mapping[str, Any]) -> None:
    """Checks the configurations of three networks of Stable Diffusion.

    Raises:
        InputError: they are damaged, do not fit together, or are not those of a text-to-image model.
    """
    unet, vae, text_encoder = {**_UNET, **unet}, {**_VAE, **vae}, {**_TEXT_ENCODER, **text_encoder}
    size = unet["sample_size"]
    if type(size) is not int or not 1 <= size <= _LARGEST_SAMPLE:
        raise InputError(
            f"prior.model: a UNet with sample_size {size!s:.40}; square latents are needed, of 1 to {_LARGEST_SAMPLE}"
        )
    for part, config in (("UNet", unet), ("autoencoder", vae), ("text encoder", text_encoder)):
        check_numbers(part, config)
    if unet["in_channels"] != vae["latent_channels"]:
        raise InputError(
            f"prior.model: the UNet takes {unet['in_channels']} channels and the autoencoder has "
            f"{vae['latent_channels']}; inpainting, depth and upscaling models cannot be used"
        )
    check_unet(unet, "prior.model")
    if unet["cross_attention_dim"] != text_encoder["hidden_size"]:
        raise InputError(
            f"prior.model: the UNet attends to width {unet['cross_attention_dim']} and the text encoder has "
            f"{text_encoder['hidden_size']}"
        )
