"""Training of the embedded prior: a small latent diffusion model in the layout of Stable Diffusion, from nothing.

Four stages, each resumable: pictures of the world are rendered to shards; a tokenizer is fitted to their captions; an
autoencoder is trained on the pictures; a UNet and its text encoder are trained on the latents. ``export_model``
writes the result in the diffusers layout, in half precision.
"""

import copy
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn

from nfsd3d.prior.vocabulary import words_of
from nfsd3d.shapes.degrade import NEGATIVE_WORDS
from nfsd3d.shapes.grammar import COLORS, PATTERNS, held_out
from nfsd3d.shapes.objects import OBJECTS
from nfsd3d.shapes.scene import picture_caption, sample_pictures

SHARD_PICTURES = 256
CAPTIONS_PER_PICTURE = 6
MAX_TOKENS = 40
CAPTION_DROPOUT = 0.12


@dataclass(frozen=True)
class TeacherSettings:
    """Sizes and schedules of the embedded prior's training.

    ``size`` in pixels, ``pictures`` in number, ``*_minutes`` are time budgets that the learning-rate schedules
    follow; ``snr_gamma`` is the cap of Min-SNR weighting (arXiv 2303.09556).
    """

    size: int = 64
    pictures: int = 32768
    seed: int = 0
    vae_width: int = 48
    vae_batch: int = 32
    vae_learning_rate: float = 1.5e-3
    vae_latent_noise: float = 0.05
    vae_minutes: float = 30.0
    unet_channels: tuple[int, ...] = (48, 96, 128)
    unet_layers: int = 1
    text_width: int = 128
    text_layers: int = 2
    unet_batch: int = 48
    unet_learning_rate: float = 1e-3
    unet_minutes: float = 120.0
    ema_decay: float = 0.999
    snr_gamma: float = 5.0
    sample_minutes: float = 10.0
    checkpoint_minutes: float = 3.0


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        refresh_per_second=1,
    )


# --- stage 1: pictures -------------------------------------------------------------------------------------------


def _render_shard(task: tuple[Path, int, int, int]) -> None:
    path, index, size, seed = task
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(seed * 1_000_003 + index)
    images, captions, objects = [], [], []
    names = list(OBJECTS)
    per_object = SHARD_PICTURES // len(names)
    for name in names:
        for picture in sample_pictures(rng, name, per_object, size):
            images.append((picture.image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())
            draw = (picture.composition, picture.view, picture.background, picture.words)
            captions.append([picture_caption(rng, *draw) for _ in range(CAPTIONS_PER_PICTURE)])
            objects.append([name, bool(picture.words)])
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, images=np.stack(images), captions=np.array(json.dumps([captions, objects])))
    os.replace(temporary, path)


def render_pictures(folder: Path, settings: TeacherSettings, workers: int | None = None) -> None:
    """Renders the training pictures to ``folder`` (shards that exist are kept), with a progress bar."""
    folder.mkdir(parents=True, exist_ok=True)
    count = math.ceil(settings.pictures / SHARD_PICTURES)
    paths = [folder / f"shard-{index:05d}.npz" for index in range(count)]
    missing = [(path, index, settings.size, settings.seed) for index, path in enumerate(paths) if not path.exists()]
    if not missing:
        return
    with _progress() as progress, get_context("spawn").Pool(workers or os.cpu_count()) as pool:
        task = progress.add_task("pictures", total=count, completed=count - len(missing), note="")
        for _ in pool.imap_unordered(_render_shard, missing):
            progress.advance(task)


@dataclass(frozen=True)
class Pictures:
    """The rendered pictures: ``images`` uint8 [N,S,S,3], ``captions`` (several each), ``degraded`` bool [N]."""

    images: np.ndarray
    captions: list[list[str]]
    degraded: np.ndarray


def load_pictures(folder: Path, settings: TeacherSettings) -> Pictures:
    """Reads the shards that ``render_pictures`` wrote."""
    images: list[np.ndarray] = []
    captions: list[list[str]] = []
    degraded: list[bool] = []
    for index in range(math.ceil(settings.pictures / SHARD_PICTURES)):
        with np.load(folder / f"shard-{index:05d}.npz") as shard:
            images.append(shard["images"])
            texts, objects = json.loads(str(shard["captions"]))
        captions.extend(texts)
        degraded.extend(bad for _, bad in objects)
    return Pictures(np.concatenate(images), captions, np.array(degraded))


# --- stage 2: tokenizer ------------------------------------------------------------------------------------------


def vocabulary_words(captions: list[list[str]]) -> dict[str, Any]:
    """The words that captions use, as ``vocabulary.json`` lists them for the check of prompts."""
    texts = {text for options in captions for text in options} | set(NEGATIVE_WORDS)
    used = {word for text in texts for word in words_of(text)}
    groups = {"objects": list(OBJECTS), "colors": list(COLORS), "patterns": list(PATTERNS)}
    known = {word for words in groups.values() for word in words}
    return {"words": sorted(used), "groups": {**groups, "other": sorted(used - known)}}


def fit_tokenizer(captions: list[list[str]], folder: Path) -> None:
    """Fits CLIP's byte-pair encoding to the captions (one token a word) and saves a ``CLIPTokenizer``."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
    )
    texts = [text for options in captions[:4096] for text in options] + [", ".join(NEGATIVE_WORDS)] * 100
    bpe.train_from_iterator(texts, trainer)
    trained = json.loads(bpe.to_str())["model"]
    merges: Any = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in trained["merges"]]
    tokenizer: Any = CLIPTokenizer(vocab=trained["vocab"], merges=merges, model_max_length=MAX_TOKENS)
    longest = len(tokenizer(", ".join(NEGATIVE_WORDS)).input_ids)
    if len(tokenizer) < 300 or longest > MAX_TOKENS:
        raise RuntimeError(f"the tokenizer has {len(tokenizer)} tokens, the negative prompt takes {longest}")
    tokenizer.save_pretrained(folder)


# --- stage 3: autoencoder ----------------------------------------------------------------------------------------


def build_autoencoder(settings: TeacherSettings) -> Any:
    """An untrained ``AutoencoderTiny`` that makes one latent pixel of 4x4 image pixels."""
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


def _to_images(batch: np.ndarray, device: torch.device) -> Tensor:
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
    """Mean over pictures of the peak signal-to-noise ratio in dB, of images in [-1,1]."""
    error = (image - decoded.clamp(-1, 1)).square().mean((1, 2, 3)) / 4
    return float((-10 * torch.log10(error)).mean())


def _one_cycle(fraction: float, warmup: float = 0.05, floor: float = 0.02) -> float:
    """The factor of the learning rate at this fraction of the budget: a short rise, then a cosine to ``floor``."""
    if fraction < warmup:
        return max(fraction / warmup, 0.02)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, (fraction - warmup) / (1 - warmup))))


@dataclass
class _Clock:
    """Seconds of training done, over all sessions, against a budget of ``minutes``."""

    minutes: float
    done: float = 0.0
    last: float = field(default_factory=time.monotonic)

    def tick(self) -> float:
        """Adds the time since the last tick and returns the fraction of the budget that is used."""
        now = time.monotonic()
        self.done, self.last = self.done + now - self.last, now
        return self.done / (60 * self.minutes)


def _save(path: Path, state: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def _batches(indices: np.ndarray, size: int, seed: int) -> Iterator[np.ndarray]:
    """Endless shuffled batches of indices. Raises ValueError when they do not fill one batch."""
    if len(indices) < size:
        raise ValueError(f"{len(indices)} pictures do not fill a batch of {size}: render more pictures")
    random = np.random.default_rng(seed)
    while True:
        order = random.permutation(indices)
        for start in range(0, len(order) - size + 1, size):
            yield order[start : start + size]


def train_autoencoder(pictures: Pictures, folder: Path, settings: TeacherSettings, device: torch.device) -> Any:
    """Trains the autoencoder within its budget, from its checkpoint in ``folder`` when there is one."""
    torch.manual_seed(settings.seed)
    model = build_autoencoder(settings).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.vae_learning_rate, betas=(0.9, 0.99))
    clock, step, path = _Clock(settings.vae_minutes), 0, folder / "autoencoder.pt"
    if path.exists():
        state = torch.load(path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, clock.done = state["step"], state["seconds"]
    count = len(pictures.images)
    held = np.arange(count)[-min(512, count // 8) :]
    test = _to_images(pictures.images[held[~pictures.degraded[held]]][:256], device)
    batches = _batches(np.arange(count - len(held)), settings.vae_batch, settings.seed + step)
    saved = time.monotonic()
    with _progress() as progress:

        def save() -> None:
            with torch.no_grad():
                quality = psnr(test, model.decoder(model.encoder(test)))
            progress.console.print(f"autoencoder step {step}: {quality:.2f} dB on unseen clean pictures")
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            _save(path, {**state, "step": step, "seconds": clock.done})

        task = progress.add_task("autoencoder", total=round(settings.vae_minutes * 60), note="")
        before = step
        while (fraction := clock.tick()) < 1:
            for group in optimizer.param_groups:
                group["lr"] = settings.vae_learning_rate * _one_cycle(fraction)
            image = _to_images(pictures.images[next(batches)], device)
            with torch.autocast(device.type, torch.bfloat16):
                latent = model.encoder(image)
                noisy = latent + settings.vae_latent_noise * torch.randn_like(latent)
                decoded = model.decoder(noisy)
            loss = autoencoder_loss(image, decoded.float(), latent.float())
            optimizer.zero_grad()
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
def encode_pictures(model: Any, pictures: Pictures, folder: Path, device: torch.device) -> tuple[Tensor, float]:
    """The latents of all pictures [N,4,h,w] with unit standard deviation, and the factor that made it so.

    They are kept in ``folder`` for as long as the autoencoder there is not trained further.
    """
    path = folder / "latents.pt"
    if path.exists() and path.stat().st_mtime > (folder / "autoencoder.pt").stat().st_mtime:
        state = torch.load(path, weights_only=True)
        return state["latents"], state["factor"]
    chunks = []
    with _progress() as progress:
        starts = range(0, len(pictures.images), 256)
        task = progress.add_task("latents", total=len(starts), note="")
        for start in starts:
            image = _to_images(pictures.images[start : start + 256], device)
            with torch.autocast(device.type, torch.bfloat16):
                latent = model.encoder(image)
            chunks.append(latent.float().cpu())
            progress.advance(task)
    latents = torch.cat(chunks)
    factor = float(1 / latents.std())
    _save(path, {"latents": latents * factor, "factor": factor})
    return latents * factor, factor


# --- stage 4: UNet and text encoder ------------------------------------------------------------------------------


def build_denoiser(settings: TeacherSettings, tokenizer: Any) -> nn.ModuleDict:
    """The untrained UNet and text encoder."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = UNet2DConditionModel(
        sample_size=settings.size // 4,
        in_channels=4,
        out_channels=4,
        block_out_channels=settings.unet_channels,
        layers_per_block=settings.unet_layers,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=settings.text_width,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.text_width,
            intermediate_size=4 * settings.text_width,
            num_hidden_layers=settings.text_layers,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    return nn.ModuleDict({"unet": unet, "text": text})


def build_scheduler() -> Any:
    """Stable Diffusion's noise schedule, as a DDIM scheduler."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def train_denoiser(
    pictures: Pictures, autoencoder: Any, folder: Path, settings: TeacherSettings, device: torch.device
) -> None:
    """Trains UNet and text encoder within their budget, resumed from ``folder``, exporting as it goes.

    Every ``sample_minutes`` the averaged model is exported to ``folder / "model"`` and a sample sheet is written.
    """
    from transformers import CLIPTokenizer

    torch.manual_seed(settings.seed)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    latents, factor = encode_pictures(autoencoder, pictures, folder, device)
    model = build_denoiser(settings, tokenizer).to(device)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.unet_learning_rate, betas=(0.9, 0.99), weight_decay=0.01
    )
    alphas_cumprod = build_scheduler().alphas_cumprod.to(device)
    clock, step, path = _Clock(settings.unet_minutes), 0, folder / "denoiser.pt"
    if path.exists():
        state = torch.load(path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, clock.done = state["step"], state["seconds"]
    random = np.random.default_rng(settings.seed + step)
    batches = _batches(np.arange(len(latents)), settings.unet_batch, settings.seed + step)
    saved = sampled = time.monotonic()
    running = float("nan")
    words = vocabulary_words(pictures.captions)
    with _progress() as progress:

        def save() -> None:
            progress.console.print(f"denoiser step {step}: loss {running:.4f}")
            state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
            _save(path, {**state, "step": step, "seconds": clock.done})

        def publish() -> None:
            export_model(folder / "model", autoencoder, factor, average, folder / "tokenizer", words)
            write_sample_sheet(folder / "model", folder / f"samples-{step:06d}.png", device)

        task = progress.add_task("denoiser", total=round(settings.unet_minutes * 60), note="")
        while (fraction := clock.tick()) < 1:
            for group in optimizer.param_groups:
                group["lr"] = settings.unet_learning_rate * _one_cycle(fraction, warmup=0.02)
            chosen = next(batches)
            captions = [
                "" if random.random() < CAPTION_DROPOUT else str(random.choice(pictures.captions[i])) for i in chosen
            ]
            tokens = tokenizer(
                captions, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
            ).input_ids.to(device)
            z = latents[chosen].to(device)
            noise = torch.randn_like(z)
            t = torch.randint(1000, (len(z),), device=device)
            alpha_bar = alphas_cumprod[t][:, None, None, None]
            z_t = alpha_bar.sqrt() * z + (1 - alpha_bar).sqrt() * noise
            with torch.autocast(device.type, torch.bfloat16):
                context = model["text"](tokens).last_hidden_state
                predicted = model["unet"](z_t, t, context).sample
            snr = (alpha_bar / (1 - alpha_bar)).flatten()
            weight = snr.clamp(max=settings.snr_gamma) / snr
            errors = F.mse_loss(predicted.float(), noise, reduction="none").mean((1, 2, 3))
            loss = (weight * errors).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            decay = min(settings.ema_decay, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
            if step % 10 == 0:
                now = errors.mean().item()
                running = now if math.isnan(running) else 0.95 * running + 0.05 * now
                progress.update(task, completed=round(clock.done), note=f"step {step} loss {running:.4f}")
            if time.monotonic() - saved > 60 * settings.checkpoint_minutes:
                saved = time.monotonic()
                save()
            if time.monotonic() - sampled > 60 * settings.sample_minutes:
                sampled = time.monotonic()
                publish()
        save()
        publish()


# --- export --------------------------------------------------------------------------------------------------------


def export_model(
    folder: Path, autoencoder: Any, factor: float, denoiser: nn.ModuleDict, tokenizer: Path, words: dict[str, Any]
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
        scheduler=build_scheduler(),
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


def write_sample_sheet(model: Path, path: Path, device: torch.device, guidance_scale: float = 5.0) -> None:
    """A PNG of 30-step DDIM samples for every held-out prompt, four a row, one row an object."""
    import imageio.v3 as iio

    from nfsd3d.prior.noise import ddim_sample
    from nfsd3d.prior.stable_diffusion import StableDiffusionPrior

    prompts = [composition.prompt for composition in held_out()]
    prior = StableDiffusionPrior.load(str(model), device=device, dtype=torch.float32)
    rng = torch.Generator().manual_seed(0)
    context, empty = prior.embed(prompts), prior.embed([""])
    z = ddim_sample(prior, context, empty.expand_as(context), guidance_scale=guidance_scale, steps=30, rng=rng)
    images = prior.decode(z).clamp(0, 1).cpu()
    per_row = 8
    rows = [torch.cat(list(images[i : i + per_row]), dim=-1) for i in range(0, len(images), per_row)]
    sheet = F.interpolate(torch.cat(rows, dim=-2)[None], scale_factor=2, mode="nearest")[0]
    iio.imwrite(path, (sheet.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())


def train(folder: Path, settings: TeacherSettings, device: torch.device) -> Path:
    """Trains the whole prior in ``folder``, resuming what is there; returns the exported model's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(asdict(settings), indent=1), encoding="utf-8")
    render_pictures(folder / "pictures", settings)
    pictures = load_pictures(folder / "pictures", settings)
    if not (folder / "tokenizer").exists():
        fit_tokenizer(pictures.captions, folder / "tokenizer")
    autoencoder = train_autoencoder(pictures, folder, settings, device)
    train_denoiser(pictures, autoencoder, folder, settings, device)
    return folder / "model"
