"""Loads the networks of a prior from a folder in the diffusers layout, or from a single file beside one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nfsd3d.prior.files.check_model import check_autoencoder
from nfsd3d.prior.files.compare_tensors import check_network
from nfsd3d.prior.files.configs_and_headers import json_object, named_errors
from nfsd3d.prior.files.convert_single_file import load_text_encoder, load_unet, load_vae
from nfsd3d.prior.files.folder import ModelFiles
from nfsd3d.prior.files.scheduler_config import training_schedule
from nfsd3d.prior.files.weight_files import weight_files
from nfsd3d.prior.merge_lora import merge_loras
from nfsd3d.prior.schedule import NoiseSchedule, RectifiedFlow, VariancePreserving

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer


@dataclass(frozen=True)
class LoadedModel:
    """The networks of a prior on the CPU, its tokenizer, forward process and prediction type."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL | AutoencoderTiny
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    process: NoiseSchedule
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
    check_autoencoder(files)
    with quiet_loading():
        if files.file is None:
            unet = _load_network(UNet2DConditionModel, files.part("unet"), torch_dtype=dtype)
            text_encoder = _load_network(CLIPTextModel, files.part("text_encoder"), dtype=dtype)
        else:
            unet, text_encoder = load_unet(files.file, folder, dtype), load_text_encoder(files.file, folder, dtype)
        setting = "prior.model" if files.vae is None else "prior.vae"
        found = files.vae or files.file or files.part("vae")
        if found.is_file():
            vae = load_vae(found, files.part("vae").parent, dtype, setting)
        else:
            vae = _load_autoencoder(found, dtype, setting)
        place = files.part("tokenizer")
        with named_errors(f"prior.model: {place}"):
            tokenizer = CLIPTokenizer.from_pretrained(str(place), local_files_only=True)
        networks = {"unet": unet, "text_encoder": text_encoder}
        merge_loras(files.loras, "StableDiffusionPipeline", networks, unet_config=unet.config)
        return LoadedModel(unet, vae, text_encoder, tokenizer, *load_schedule(folder / "scheduler"))


def _load_network(network: Any, folder: Path, setting: str = "prior.model", **dtype: torch.dtype) -> Any:
    """The network in ``folder``, in the given precision."""
    variant, weights = weight_files(folder, setting)
    with named_errors(f"{setting}: {folder}"):
        check_network(_on_meta(network, folder), weights, setting)
        return network.from_pretrained(
            str(folder), variant=variant, local_files_only=True, use_safetensors=True, **dtype
        )


def _on_meta(network: Any, folder: Path) -> torch.nn.Module:
    """The network that the configuration in ``folder`` describes, with shapes and no memory."""
    with torch.device("meta"):
        if hasattr(network, "load_config"):  # diffusers
            return network.from_config(network.load_config(str(folder), local_files_only=True))
        return network(network.config_class.from_pretrained(str(folder), local_files_only=True))


def _load_autoencoder(folder: Path, dtype: torch.dtype, setting: str) -> AutoencoderKL | AutoencoderTiny:
    from diffusers import AutoencoderKL, AutoencoderTiny

    with named_errors(f"{setting}: {folder}"):
        name = json_object(folder / "config.json").get("_class_name")
    network = AutoencoderTiny if name == "AutoencoderTiny" else AutoencoderKL
    return _load_network(network, folder, setting, torch_dtype=dtype)


def load_schedule(folder: Path) -> tuple[NoiseSchedule, str]:
    """The forward process and the prediction type that any diffusers scheduler's configuration describes."""
    from diffusers import DDPMScheduler

    path = folder / "scheduler_config.json"
    with named_errors(f"prior.model: {folder}"):
        training = training_schedule(json_object(path), f"prior.model: {path}")
    if training.is_flow:
        return RectifiedFlow(), training.prediction_type
    # DDPM's class computes the same ᾱ as all others; the defaults of the configuration's own class are filled in.
    scheduler = DDPMScheduler(**training.config)
    return VariancePreserving(scheduler.alphas_cumprod.double()), training.prediction_type


@contextmanager
def quiet_loading() -> Iterator[None]:
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
