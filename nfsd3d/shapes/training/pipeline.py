"""Training of the embedded prior: a small latent diffusion model in the layout of Stable Diffusion, from scratch.

Four stages, each resumable: images of the world are rendered to shards; a tokenizer is fitted to their captions; an
autoencoder is trained on the images; a UNet and its text encoder are trained on the latents. ``export_model``
writes the result in the diffusers layout, in half precision. A rectified flow has only the last stage: its UNet is
trained on from an exported model, whose other parts stay as they are.
"""

import copy
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nfsd3d.errors import InputError
from nfsd3d.shapes.training.autoencoder import autoencoder_optimizer, encode_images, train_autoencoder
from nfsd3d.shapes.training.checkpoints import save_training
from nfsd3d.shapes.training.common import Clock, TeacherSettings
from nfsd3d.shapes.training.dataset import load_dataset, render_dataset
from nfsd3d.shapes.training.denoiser import (
    build_denoiser,
    denoiser_optimizer,
    fit_tokenizer,
    train_denoiser,
    vocabulary_words,
)
from nfsd3d.shapes.training.objectives import build_scheduler
from nfsd3d.shapes.world.grammar import held_out
from nfsd3d.visualize.image_grid import grid, in_rows, write_png
from nfsd3d.visualize.images import to_uint8


def export_model(
    folder: Path,
    autoencoder: Any,
    factor: float,
    denoiser: nn.ModuleDict,
    tokenizer: Path,
    words: dict[str, Any],
    objective: str = "epsilon",
) -> None:
    """Writes the model in the diffusers layout, in half precision, with ``vocabulary.json``."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTokenizer

    vae = copy.deepcopy(autoencoder).cpu().half()
    vae.register_to_config(scaling_factor=factor)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=copy.deepcopy(denoiser["text"]).cpu().half(),
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer, local_files_only=True),
        unet=copy.deepcopy(denoiser["unet"]).cpu().half(),
        scheduler=build_scheduler(objective),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    pipeline.save_pretrained(temporary)
    (temporary / "vocabulary.json").write_text(json.dumps(words, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def write_sample_grid(model: Path, path: Path, device: torch.device, guidance_scale: float = 5.0) -> None:
    """Writes a PNG of 30-step DDIM samples of every held-out prompt; four of each object."""
    from nfsd3d.prior.load_prior import load_prior
    from nfsd3d.prior.sampling import ddim_sample

    prompts = [composition.prompt for composition in held_out()]
    prior = load_prior(str(model), device=device, dtype=torch.float32)
    rng = torch.Generator().manual_seed(0)
    context, empty = prior.embed(prompts), prior.embed([""])
    z = ddim_sample(prior, context, empty, guidance_scale=guidance_scale, steps=30, rng=rng)
    write_samples(path, prior.decode(z).clamp(0, 1).cpu())


def write_samples(path: Path, images: Tensor) -> None:
    """Writes a PNG of images [N,3,H,W] in [0,1], eight per row and twice as large."""
    enlarged = images.repeat_interleave(2, -1).repeat_interleave(2, -2)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, grid(in_rows([to_uint8(image) for image in enlarged], 8)))


def begin_from(model: Path, folder: Path, settings: TeacherSettings) -> None:
    """Writes the first checkpoints in ``folder`` from an exported ``model``; existing ones are kept.

    The tokenizer in ``folder`` may have other words than the model's: common words keep their embedding, new ones start
    as the mean.
    """
    from diffusers import AutoencoderTiny, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    def read(network: Any, name: str) -> Any:
        return network.from_pretrained(model / name, local_files_only=True).float()

    if not (folder / "autoencoder.pt").exists():
        autoencoder = read(AutoencoderTiny, "vae")
        optimizer = autoencoder_optimizer(autoencoder, settings)
        clock = Clock(settings.vae_minutes)
        save_training(folder / "autoencoder.pt", clock, 0, model=autoencoder, optimizer=optimizer)
    if not (folder / "denoiser.pt").exists():
        known = CLIPTokenizer.from_pretrained(model / "tokenizer", local_files_only=True).get_vocab()
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        denoiser = build_denoiser(settings, tokenizer)
        denoiser["unet"].load_state_dict(read(UNet2DConditionModel, "unet").state_dict())
        text = read(CLIPTextModel, "text_encoder")
        old: Any = text.get_input_embeddings().weight.data
        rows = [
            old[known[token]] if token in known else old.mean(0)
            for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        ]
        text.resize_token_embeddings(len(rows), mean_resizing=False)
        text.get_input_embeddings().weight.data.copy_(torch.stack(rows))
        denoiser["text"].load_state_dict(text.state_dict())
        clock, optimizer = Clock(settings.unet_minutes), denoiser_optimizer(denoiser, settings)
        save_training(folder / "denoiser.pt", clock, 0, model=denoiser, average=denoiser, optimizer=optimizer)


def train(folder: Path, settings: TeacherSettings, device: torch.device, start: Path | None = None) -> Path:
    """Trains the whole prior in ``folder``, or resumes there; returns the exported model's folder.

    ``start`` is the folder of an exported model with the initial weights; default: random ones. A rectified flow needs
    it, and keeps its tokenizer, text encoder and autoencoder.

    Raises:
        InputError: ``folder`` holds a training with another objective.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_settings(folder / "settings.json", settings)
    flow = settings.objective == "flow"
    render_dataset(folder / "pictures", settings)
    dataset = load_dataset(folder / "pictures", settings)
    if not (folder / "tokenizer").exists():
        if flow and start is not None:
            shutil.copytree(start / "tokenizer", folder / "tokenizer")
        else:
            fit_tokenizer(dataset.captions, folder / "tokenizer")
    if start is not None:
        begin_from(start, folder, settings)
    autoencoder = train_autoencoder(dataset, folder, settings, device)
    factor = None
    if flow and start is not None:
        factor = json.loads((start / "vae" / "config.json").read_text(encoding="utf-8"))["scaling_factor"]
    latents, factor = encode_images(autoencoder, dataset, folder, device, factor)
    words = vocabulary_words(dataset.captions)

    def publish(denoiser: nn.ModuleDict, step: int) -> None:
        model = folder / "model"
        export_model(model, autoencoder, factor, denoiser, folder / "tokenizer", words, settings.objective)
        write_sample_grid(model, folder / f"samples-{step:06d}.png", device)

    train_denoiser(dataset, latents, folder, settings, device, publish)
    return folder / "model"


def _write_settings(path: Path, settings: TeacherSettings) -> None:
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8")).get("objective", "epsilon")
        if before != settings.objective:
            raise InputError(
                f"--objective {settings.objective}: {path.parent} holds a training with the objective {before}; name "
                "another folder with --out"
            )
    path.write_text(json.dumps(asdict(settings), indent=1), encoding="utf-8")
