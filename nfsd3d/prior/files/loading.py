"""Loads the networks of a prior from a folder in the diffusers layout, or from a single file beside one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from nfsd3d.errors import InputError
from nfsd3d.prior.files.resolve import ModelFiles
from nfsd3d.prior.schedule import NoiseSchedule

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    Networks: TypeAlias = tuple[UNet2DConditionModel, AutoencoderKL | AutoencoderTiny, CLIPTextModel]


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
    from transformers import CLIPTokenizer

    folder = files.folder
    with _quiet_loading():
        if files.file is None:
            unet, vae, text_encoder = _load_networks(folder, files.vae, dtype)
        else:
            unet, vae, text_encoder = _load_single_file(files.file, folder, dtype)
            if files.vae is not None:
                vae = _load_autoencoder(files.vae, dtype, "prior.vae")
        if files.vae is not None:
            _check_autoencoder(vae, files.vae, unet.config.in_channels, folder / "vae" / "config.json")
        with _named_errors(folder / "tokenizer"):
            tokenizer = CLIPTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)
        return LoadedModel(unet, vae, text_encoder, tokenizer, *_load_schedule(folder / "scheduler"))


def _load_networks(folder: Path, vae: Path | None, dtype: torch.dtype) -> Networks:
    """UNet, autoencoder (the one in ``vae``, if given) and text encoder from folders in the layout of diffusers."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    return (
        _load_network(UNet2DConditionModel, folder / "unet", torch_dtype=dtype),
        _load_autoencoder(folder / "vae", dtype) if vae is None else _load_autoencoder(vae, dtype, "prior.vae"),
        _load_network(CLIPTextModel, folder / "text_encoder", dtype=dtype),
    )


def _load_network(network: Any, folder: Path, setting: str = "prior.model", **dtype: torch.dtype) -> Any:
    """The network in ``folder`` in the given precision, from its ``fp16`` files if there are no others."""
    plain = any(path for path in folder.glob("*.safetensors") if ".fp16." not in path.name)
    with _named_errors(folder, setting):
        module, loaded = network.from_pretrained(
            str(folder),
            variant=None if plain else "fp16",
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **dtype,
        )
    # The libraries leave missing weights at random values, with only a warning.
    if loaded["missing_keys"] or loaded["mismatched_keys"]:
        lacking = sorted(loaded["missing_keys"])[:1] or loaded["mismatched_keys"][:1]
        raise InputError(f"{setting}: the weights in {folder} do not match its config.json (first: {lacking[0]})")
    return module


def _load_autoencoder(
    folder: Path, dtype: torch.dtype, setting: str = "prior.model"
) -> AutoencoderKL | AutoencoderTiny:
    from diffusers import AutoencoderKL, AutoencoderTiny

    network = AutoencoderTiny if _class_name(folder, setting) == "AutoencoderTiny" else AutoencoderKL
    return _load_network(network, folder, setting, torch_dtype=dtype)


def _class_name(folder: Path, setting: str) -> str:
    with _named_errors(folder, setting):
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))["_class_name"]


def _load_single_file(file: Path, layout: Path, dtype: torch.dtype) -> Networks:
    """UNet, autoencoder and text encoder from one file in the layout of the original code.

    ``layout`` is the folder with their configurations and the tokenizer.
    """
    from diffusers import StableDiffusionPipeline

    absent = dict.fromkeys(("tokenizer", "scheduler", "safety_checker", "feature_extractor", "image_encoder"))
    with _named_errors(file):
        pipeline = StableDiffusionPipeline.from_single_file(
            str(file), config=str(layout), local_files_only=True, torch_dtype=dtype, **absent
        )
    networks = pipeline.unet, pipeline.vae, pipeline.text_encoder
    for network in networks:
        # Missing weights stay on the meta device.
        lacking = [name for name, tensor in network.named_parameters() if tensor.is_meta]
        if lacking:
            raise InputError(f"prior.model: {file} lacks weights of {type(network).__name__} (first: {lacking[0]})")
    return networks


def _load_schedule(folder: Path) -> tuple[NoiseSchedule, str]:
    """The noise schedule and the prediction type of any diffusers scheduler's configuration."""
    from diffusers import DDPMScheduler

    with _named_errors(folder):
        # The configuration describes the training, whichever sampler it was written by.
        scheduler = DDPMScheduler.from_config(DDPMScheduler.load_config(str(folder), local_files_only=True))
    return NoiseSchedule(scheduler.alphas_cumprod.double()), scheduler.config.prediction_type


def _check_autoencoder(vae: AutoencoderKL | AutoencoderTiny, folder: Path, channels: int, own: Path) -> None:
    """Raises InputError unless the autoencoder from ``folder`` has the latents that the UNet was trained with.

    They have ``channels``; size and scale are compared if the configuration of the model's ``own`` autoencoder exists.
    """
    expected = {"channels": channels}
    found = {"channels": vae.config.latent_channels}
    if own.is_file():
        with _named_errors(own):
            config = json.loads(own.read_text(encoding="utf-8"))
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
def _named_errors(folder: Path, setting: str = "prior.model") -> Iterator[None]:
    """Turns the libraries' errors about unreadable files into one that names the part of the model."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{setting}: {folder} cannot be loaded ({reason}); replace the folder with an intact copy"
        ) from error


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
