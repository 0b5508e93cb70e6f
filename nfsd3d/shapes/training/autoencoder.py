"""The embedded prior's autoencoder: its training, and the latents of all images."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfsd3d.shapes.training.checkpoints import resume_training, save_state, save_training
from nfsd3d.shapes.training.common import Clock, TeacherSettings, batches_of, one_cycle, progress_bar
from nfsd3d.shapes.training.dataset import ImageDataset


def build_autoencoder(settings: TeacherSettings) -> Any:
    """An untrained ``AutoencoderTiny`` with a downsampling factor of 4."""
    from diffusers import AutoencoderTiny

    width = (settings.vae_width,) * 3
    return AutoencoderTiny(
        encoder_block_out_channels=width,
        decoder_block_out_channels=width,
        num_encoder_blocks=(0, 3, 3),
        num_decoder_blocks=(3, 3, 0),
        latent_channels=4,
        scaling_factor=1.0,
    )


def autoencoder_optimizer(model: Any, settings: TeacherSettings) -> torch.optim.Optimizer:
    """The optimizer of the autoencoder's training."""
    return torch.optim.AdamW(model.parameters(), lr=settings.vae_learning_rate, betas=(0.9, 0.99))


def to_images(batch: np.ndarray, device: torch.device) -> Tensor:
    """[B,3,H,W] in [-1,1] of uint8 images [B,H,W,3]."""
    images = torch.from_numpy(batch).to(device).permute(0, 3, 1, 2)
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def _gradients(image: Tensor) -> tuple[Tensor, Tensor]:
    return image[..., 1:, :] - image[..., :-1, :], image[..., :, 1:] - image[..., :, :-1]


def autoencoder_loss(image: Tensor, decoded: Tensor, latent: Tensor) -> Tensor:
    """Absolute and squared error, absolute error of the image gradients, and unit statistics of the latents."""
    edges = sum((a - b).abs().mean() for a, b in zip(_gradients(image), _gradients(decoded), strict=True))
    mean, std = latent.mean((0, 2, 3)), latent.std((0, 2, 3))
    statistics = (mean.square() + (std - 1).square()).mean()
    return (image - decoded).abs().mean() + 2 * F.mse_loss(decoded, image) + 0.5 * edges + 0.02 * statistics


def psnr(image: Tensor, decoded: Tensor) -> float:
    """Mean over images of the peak signal-to-noise ratio in dB, of images in [-1,1]."""
    error = (image - decoded.clamp(-1, 1)).square().mean((1, 2, 3)) / 4
    return float((-10 * torch.log10(error)).mean())


def train_autoencoder(dataset: ImageDataset, folder: Path, settings: TeacherSettings, device: torch.device) -> Any:
    """Trains the autoencoder within its budget, from its checkpoint in ``folder`` when there is one.

    At the end only the decoder is trained and the encoder is frozen. That halves the cost of a step, and a UNet trained
    on the latents stays valid.
    """
    torch.manual_seed(settings.seed)
    model = build_autoencoder(settings).to(device, memory_format=torch.channels_last)
    optimizer = autoencoder_optimizer(model, settings)
    clock, path = Clock(settings.vae_minutes), folder / "autoencoder.pt"
    step = resume_training(path, clock, device, model=model, optimizer=optimizer)
    count = len(dataset.images)
    held = np.arange(count)[-min(512, count // 8) :]
    test = to_images(dataset.images[held[~dataset.degraded[held]]][:256], device)
    batches = batches_of(np.arange(count - len(held)), settings.vae_batch, settings.seed + step)
    saved = time.monotonic()
    with progress_bar() as progress:

        def save() -> None:
            with torch.no_grad():
                quality = psnr(test, model.decoder(model.encoder(test)))
            progress.console.print(f"autoencoder step {step}: {quality:.2f} dB on unseen clean images")
            save_training(path, clock, step, model=model, optimizer=optimizer)

        task = progress.add_task("autoencoder", total=round(settings.vae_minutes * 60), note="")
        before = step
        while (fraction := clock.tick()) < 1:
            for group in optimizer.param_groups:
                group["lr"] = settings.vae_learning_rate * one_cycle(clock.cycle())
            image = to_images(dataset.images[next(batches)], device)
            with torch.autocast(device.type, torch.bfloat16):
                with torch.set_grad_enabled(fraction < 1 - settings.vae_decoder_share):
                    latent = model.encoder(image)
                noisy = latent + settings.vae_latent_noise * torch.randn_like(latent)
                decoded = model.decoder(noisy)
            loss = autoencoder_loss(image, decoded.float(), latent.float())
            optimizer.zero_grad()  # None, so that the optimizer skips a frozen encoder
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            if step % 10 == 0:
                progress.update(task, completed=round(clock.done), note=f"step {step} loss {loss.item():.4f}")
            if time.monotonic() - saved > 60 * settings.checkpoint_minutes:
                saved = time.monotonic()
                save()
        if step > before:
            save()
    return model


@torch.no_grad()
def encode_images(
    model: Any, dataset: ImageDataset, folder: Path, device: torch.device, factor: float | None = None
) -> tuple[Tensor, float]:
    """The latents of all images [N,4,h,w], scaled by ``factor`` (None: to unit standard deviation), and the factor.

    They are cached in ``folder`` until its autoencoder is trained further.
    """
    path = folder / "latents.pt"
    if path.exists() and path.stat().st_mtime > (folder / "autoencoder.pt").stat().st_mtime:
        state = torch.load(path, weights_only=True)
        return state["latents"], state["factor"]
    chunks = []
    with progress_bar() as progress:
        starts = range(0, len(dataset.images), 256)
        task = progress.add_task("latents", total=len(starts), note="")
        for start in starts:
            image = to_images(dataset.images[start : start + 256], device)
            with torch.autocast(device.type, torch.bfloat16):
                latent = model.encoder(image)
            chunks.append(latent.float().cpu())
            progress.advance(task)
    latents = torch.cat(chunks)
    factor = float(1 / latents.std()) if factor is None else factor
    save_state(path, {"latents": latents * factor, "factor": factor})
    return latents * factor, factor
