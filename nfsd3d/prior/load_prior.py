"""Loads a latent diffusion model or a rectified flow from its files, as a prior."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nfsd3d.prior.diffusers_prior import DiffusersPrior, Weights
from nfsd3d.prior.embedding_cache import EmbeddingCache
from nfsd3d.prior.families.table import FAMILIES
from nfsd3d.prior.files.check_model import check_fit
from nfsd3d.prior.files.count_tokens import check_vocabulary
from nfsd3d.prior.files.family_folder import parts_of
from nfsd3d.prior.files.folder import ModelFiles
from nfsd3d.prior.files.load import load_model, load_schedule
from nfsd3d.prior.files.load_family import empty_networks, load_networks, text_pipeline
from nfsd3d.prior.merge_lora import merge_loras
from nfsd3d.prior.schedule import NoiseSchedule, RectifiedFlow, VariancePreserving
from nfsd3d.prior.text_encoders import ClipTextEncoder, PipelineTextEncoders

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer


def load_prior(
    model: str | Path | ModelFiles,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    clock: str = "own",
    image_size: int | None = None,
) -> DiffusersPrior:
    """A model in the layout of Stable Diffusion 1 and 2, in precision ``dtype``.

    ``model`` is a folder, or files that `nfsd3d.prior.files.download.fetch` gave. With the ``clock`` "flow" a diffusion
    model is served as a rectified flow: its latents and times are those of equal SNR, its predictions of the noise the
    same.

    Raises:
        InputError: the files cannot be read as such a model; the message names the part.
    """
    parts = load_model(model if isinstance(model, ModelFiles) else ModelFiles(Path(model)), dtype)
    networks = placed(parts.unet, parts.vae, parts.text_encoder, device)
    served = _served(parts.process, clock)
    return stable_diffusion_prior(*networks, parts.tokenizer, parts.process, parts.prediction_type, served, image_size)


def _served(process: NoiseSchedule, clock: str) -> NoiseSchedule | None:
    """The schedule that a model is served with, where that is not its own ``process``."""
    # A rectified flow is one already.
    if clock == "own" or not isinstance(process, VariancePreserving):
        return None
    return RectifiedFlow(process.alphas_cumprod)


def stable_diffusion_prior(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL | AutoencoderTiny,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    process: NoiseSchedule,
    prediction_type: str,
    schedule: NoiseSchedule | None = None,
    image_size: int | None = None,
) -> DiffusersPrior:
    """The prior of networks in the layout of Stable Diffusion 1 and 2; arguments as of :class:`DiffusersPrior`.

    Raises:
        InputError: the networks do not fit together, or are not those of a text-to-image model.
    """
    check_vocabulary(len(tokenizer), text_encoder.config.vocab_size)
    check_fit(unet.config, vae.config, text_encoder.config.to_dict())
    encoder = ClipTextEncoder(text_encoder, tokenizer)
    return DiffusersPrior(unet, vae, encoder, process, prediction_type, schedule=schedule, image_size=image_size)


def load_family_prior(
    files: ModelFiles,
    device: torch.device | str,
    dtype: torch.dtype,
    *,
    clock: str = "own",
    image_size: int | None = None,
    cache: bool = True,
) -> DiffusersPrior:
    """A model of one of `nfsd3d.prior.families.table.FAMILIES` in precision ``dtype``; ``clock`` as in `load_prior`.

    Its text encoders are loaded when a prompt comes that is not in the ``cache`` on disk. Denoiser and autoencoder are
    loaded when they are needed, which in a run is after the text encoders were freed.

    Raises:
        InputError: the files cannot be read as such a model; the message names the part.
    """
    assert files.family is not None
    folder, family, device = files.folder, FAMILIES[files.family], torch.device(device)
    denoiser, vae = empty_networks(folder, family, dtype)
    encoders = [name for name in parts_of(folder, "prior.model") if name.startswith("text_encoder")]
    # Without memory first: a LoRA that does not fit is found before the text encoders are loaded.
    merge_loras(files.loras, family.pipelines[0], {family.denoiser: denoiser}, encoders, denoiser.config)
    process, prediction_type = load_schedule(folder / "scheduler")

    def load() -> tuple[Any, Any]:
        networks = load_networks(folder, family, dtype, files.loras)
        return networks[0].to(device), networks[1].to(memory_format=torch.channels_last).to(device)

    known = EmbeddingCache(folder, dtype, files.loras) if cache else None
    return DiffusersPrior(
        denoiser,
        vae,
        PipelineTextEncoders(text_pipeline(folder, family, dtype, device, files.loras), family, known, device),
        process,
        prediction_type,
        family=family,
        image_size=image_size,
        schedule=_served(process, clock),
        weights=Weights(load, device),
    )


def placed(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL | AutoencoderTiny,
    text_encoder: CLIPTextModel,
    device: torch.device | str,
) -> tuple[UNet2DConditionModel, AutoencoderKL | AutoencoderTiny, CLIPTextModel]:
    """The networks on ``device``, with weights in the memory layout that is fastest there."""
    vae = vae.to(memory_format=torch.channels_last)
    if torch.device(device).type == "cuda":  # on a CPU only the autoencoder is faster
        unet = unet.to(memory_format=torch.channels_last)
    return unet.to(device), vae.to(device), text_encoder.to(device)  # type: ignore[arg-type]
