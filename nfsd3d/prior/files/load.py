"""Loads the networks of a prior from a folder in the diffusers layout, or from a single file beside one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nfsd3d.errors import InputError
from nfsd3d.prior.files.compare_tensors import check_network, named_errors, network_weights
from nfsd3d.prior.files.configs_and_headers import json_object
from nfsd3d.prior.files.convert_single_file import load_text_encoder, load_unet, load_vae
from nfsd3d.prior.files.locate import ModelFiles
from nfsd3d.prior.files.scheduler_config import training_schedule
from nfsd3d.prior.schedule import NoiseSchedule

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer


@dataclass(frozen=True)
class LoadedModel:
    """The networks of a prior on the CPU, its tokenizer, noise schedule and prediction type."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL | AutoencoderTiny
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    schedule: NoiseSchedule
    prediction_type: str


def load_model(files: ModelFiles, dtype: torch.dtype) -> LoadedModel:
    """The networks, converted to ``dtype``.

    Raises:
        InputError: the files cannot be read as such a model; the message names the part.
    """
    # Imported here, because these imports take seconds and a wrong setting should fail before.
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = files.folder
    with _quiet_loading():
        if files.file is None:
            unet = _load_network(UNet2DConditionModel, folder / "unet", torch_dtype=dtype)
            text_encoder = _load_network(CLIPTextModel, folder / "text_encoder", dtype=dtype)
        else:
            unet, text_encoder = load_unet(files.file, folder, dtype), load_text_encoder(files.file, folder, dtype)
        if files.vae is not None and files.vae.is_file():
            vae = load_vae(files.vae, folder, dtype, "prior.vae")
        elif files.vae is None and files.file is not None:
            vae = load_vae(files.file, folder, dtype)
        elif files.vae is None:
            vae = _load_autoencoder(folder / "vae", dtype)
        else:
            vae = _load_autoencoder(files.vae, dtype, "prior.vae")
            _check_autoencoder(vae, files.vae, unet.config.in_channels, folder / "vae" / "config.json")
        with named_errors(folder / "tokenizer"):
            tokenizer = CLIPTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)
        return LoadedModel(unet, vae, text_encoder, tokenizer, *_load_schedule(folder / "scheduler"))


def _load_network(network: Any, folder: Path, setting: str = "prior.model", **dtype: torch.dtype) -> Any:
    """The network in ``folder`` in the given precision, from its ``fp16`` files if there are no others."""
    plain = any(path for path in network_weights(folder) if ".fp16" not in path.name)
    with named_errors(folder, setting):
        check_network(_on_meta(network, folder), folder, setting)
        return network.from_pretrained(
            str(folder), variant=None if plain else "fp16", local_files_only=True, use_safetensors=True, **dtype
        )


def _on_meta(network: Any, folder: Path) -> torch.nn.Module:
    """The network that the configuration in ``folder`` describes, with shapes and no memory."""
    with torch.device("meta"):
        if hasattr(network, "load_config"):  # diffusers
            return network.from_config(network.load_config(str(folder), local_files_only=True))
        return network(network.config_class.from_pretrained(str(folder), local_files_only=True))


def _load_autoencoder(
    folder: Path, dtype: torch.dtype, setting: str = "prior.model"
) -> AutoencoderKL | AutoencoderTiny:
    from diffusers import AutoencoderKL, AutoencoderTiny

    network = AutoencoderTiny if _class_name(folder, setting) == "AutoencoderTiny" else AutoencoderKL
    return _load_network(network, folder, setting, torch_dtype=dtype)


def _class_name(folder: Path, setting: str) -> str:
    with named_errors(folder, setting):
        return str(json_object(folder / "config.json")["_class_name"])


def _load_schedule(folder: Path) -> tuple[NoiseSchedule, str]:
    """The noise schedule and the prediction type that any diffusers scheduler's configuration describes."""
    from diffusers import DDPMScheduler

    path = folder / "scheduler_config.json"
    with named_errors(folder):
        config = json_object(path)
    training = training_schedule(config, f"prior.model: {path}")
    # DDPM's class computes the same ᾱ as all others; the defaults of the configuration's own class are filled in.
    scheduler = DDPMScheduler(**training.config)
    return NoiseSchedule(scheduler.alphas_cumprod.double()), training.prediction_type


def _check_autoencoder(vae: AutoencoderKL | AutoencoderTiny, folder: Path, channels: int, own: Path) -> None:
    """Raises InputError unless the autoencoder from ``folder`` has the latents that the UNet was trained with.

    They have ``channels``; size and scale are compared if the configuration of the model's ``own`` autoencoder exists.
    """
    expected = {"channels": channels}
    found = {"channels": vae.config.latent_channels}
    if own.is_file():
        with named_errors(own):
            config = json_object(own)
            blocks = config.get("block_out_channels") or config["encoder_block_out_channels"]
        expected["pixels per latent and axis"] = 2 ** (len(blocks) - 1)
        found["pixels per latent and axis"] = 2 ** (len(vae.config.block_out_channels) - 1)
        # AutoencoderTiny scales its latents itself.
        if type(vae).__name__ == config.get("_class_name") == "AutoencoderKL":
            expected["scaling_factor"] = config.get("scaling_factor", 0.18215)  # Stable Diffusion's where none is named
            found["scaling_factor"] = vae.config.scaling_factor
    different = [
        f"{name} {found[name]} instead of {expected[name]}" for name in expected if found[name] != expected[name]
    ]
    if different:
        raise InputError(
            f"prior.vae: {folder} has {', '.join(different)}, so its latents are not those of the model; choose an "
            "autoencoder made for it, or leave prior.vae out"
        )


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Silences progress bars and warnings of the libraries within the block.

    The warnings are about attributes that the libraries themselves wrote. Mismatched weights are an error here.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    before = [
        (logging, logging.get_verbosity(), logging.is_progress_bar_enabled())
        for logging in (diffusers_logging, transformers_logging)
    ]
    for logging, _, _ in before:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    try:
        yield
    finally:
        for logging, verbosity, progress_bar in before:
            logging.set_verbosity(verbosity)
            if progress_bar:
                logging.enable_progress_bar()
