"""The embedded prior's tokenizer, text encoder and UNet, and their training on latents."""

import copy
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfsd3d.prior.vocabulary import words_of
from nfsd3d.shapes.training.checkpoints import resume_training, save_training
from nfsd3d.shapes.training.common import Clock, TeacherSettings, one_cycle, progress_bar
from nfsd3d.shapes.training.dataset import ImageDataset
from nfsd3d.shapes.training.objectives import OBJECTIVES
from nfsd3d.shapes.world.degrade import NEGATIVE_WORDS
from nfsd3d.shapes.world.grammar import COLORS, PATTERNS
from nfsd3d.shapes.world.objects import OBJECTS

MAX_TOKENS = 40
CAPTION_DROPOUT = 0.12
VIEW_SHARE = 0.7


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


def denoiser_optimizer(model: nn.ModuleDict, settings: TeacherSettings) -> torch.optim.Optimizer:
    """The optimizer of the UNet's training, and unless the objective is a flow of the text encoder's."""
    trained = model["unet"] if settings.objective == "flow" else model
    return torch.optim.AdamW(trained.parameters(), lr=settings.unet_learning_rate, betas=(0.9, 0.99), weight_decay=0.01)


def caption_difficulty(captions: list[list[str]]) -> np.ndarray:
    """[N] sampling probabilities of the images: higher for views and fine patterns, which are learnt last."""
    fronts = {name for name, shape in OBJECTS.items() if shape.has_front}
    weights = []
    for options in captions:
        words = {word for caption in options for word in words_of(caption)}
        fine = bool(words & {"dotted", "dots", "checkered", "checks"})
        weights.append((2.0 if words & fronts else 1.0) * (2.0 if fine else 1.0))
    return np.array(weights) / sum(weights)


def draw_caption(options: list[str], random: np.random.Generator) -> str:
    """One of an image's captions, mostly one with a view word; sometimes empty, for classifier-free guidance."""
    if random.random() < CAPTION_DROPOUT:
        return ""
    with_view = [caption for caption in options if " view" in caption]
    pool = with_view if with_view and random.random() < VIEW_SHARE else options
    return pool[int(random.integers(len(pool)))]


def _use_plain_attention(model: nn.ModuleDict) -> None:
    """Attention as matrix products: on a CPU torch's fused one has a slow backward pass (a third of a step)."""
    from diffusers.models.attention_processor import AttnProcessor

    unet: Any = model["unet"]
    text: Any = model["text"]
    unet.set_attn_processor(AttnProcessor())
    text.set_attn_implementation("eager")


def train_denoiser(
    dataset: ImageDataset,
    latents: Tensor,
    folder: Path,
    settings: TeacherSettings,
    device: torch.device,
    publish: Callable[[nn.ModuleDict, int], None],
) -> None:
    """Trains UNet and text encoder on the images' ``latents`` [N,4,h,w] within their budget, resumed from ``folder``.

    A rectified flow's text encoder stays as it is, so that one text encoder serves both models.
    ``publish`` is called with the averaged model and the step every ``sample_minutes`` and at the end.
    """
    from transformers import CLIPTokenizer

    torch.manual_seed(settings.seed)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    model = build_denoiser(settings, tokenizer).to(device)
    if device.type == "cpu":
        _use_plain_attention(model)
    if settings.objective == "flow":
        model["text"].requires_grad_(False)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = denoiser_optimizer(model, settings)
    objective = OBJECTIVES[settings.objective](settings)
    clock, path = Clock(settings.unet_minutes), folder / "denoiser.pt"
    step = resume_training(path, clock, device, model=model, average=average, optimizer=optimizer)
    random = np.random.default_rng(settings.seed + step)
    difficulty = caption_difficulty(dataset.captions)
    saved = sampled = time.monotonic()
    running = float("nan")
    with progress_bar() as progress:

        def save() -> None:
            progress.console.print(f"denoiser step {step}: loss {running:.4f}")
            save_training(path, clock, step, model=model, average=average, optimizer=optimizer)

        task = progress.add_task("denoiser", total=round(settings.unet_minutes * 60), note="")
        while clock.tick() < 1:
            for group in optimizer.param_groups:
                group["lr"] = settings.unet_learning_rate * one_cycle(clock.cycle(), warmup=0.02)
            chosen = random.choice(len(latents), settings.unet_batch, p=difficulty)
            captions = [draw_caption(dataset.captions[i], random) for i in chosen]
            tokens = tokenizer(
                captions, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
            ).input_ids.to(device)
            z = latents[chosen].to(device)
            drawn = objective(z, torch.randn_like(z))
            with torch.autocast(device.type, torch.bfloat16):
                context = model["text"](tokens).last_hidden_state
                predicted = model["unet"](drawn.z_t, drawn.timestep, context).sample
            errors = F.mse_loss(predicted.float(), drawn.target, reduction="none").mean((1, 2, 3))
            loss = (drawn.weight * errors).mean()
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
                publish(average, step)
        save()
        publish(average, step)
