"""A small model in the diffusers layout of Stable Diffusion, with random weights."""

from collections.abc import Callable
from pathlib import Path

import pytest

WORDS = ("a", "red", "blue", "cube", "front", "side", "view", "back", "overhead", "dull", ",")
TOKENS = 14
LATENT = 8


def _tokenizer():
    from transformers import CLIPTokenizer

    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    merges = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        for piece in pieces:
            vocab.setdefault(piece, len(vocab))
        while len(pieces) > 1:
            if tuple(pieces[:2]) not in merges:
                merges.append(tuple(pieces[:2]))
            pieces = ["".join(pieces[:2]), *pieces[2:]]
            vocab.setdefault(pieces[0], len(vocab))
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TOKENS)


def build_model(folder: Path, vae: str, prediction_type: str) -> Path:
    """Saves the model in half precision, as models are shipped."""
    import torch
    from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    tokenizer = _tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=LATENT,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    if vae == "tiny":
        autoencoder = AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            num_encoder_blocks=(1, 1, 1),
            num_decoder_blocks=(1, 1, 1),
            latent_channels=4,
            scaling_factor=0.7,
            shift_factor=0.25,
        )
        scheduler_class = DDIMScheduler
    else:
        autoencoder = AutoencoderKL(
            block_out_channels=(8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
            scaling_factor=0.18215,
        )
        scheduler_class = PNDMScheduler
    scheduler = scheduler_class(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type
    )
    parts = {"unet": unet, "vae": autoencoder, "text_encoder": text_encoder}
    for name, network in parts.items():
        network.half().save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / "tokenizer")
    scheduler.save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Callable[..., Path]:
    """(vae "kl" or "tiny", prediction type) -> a folder with the saved model; do not change it."""
    built: dict[tuple[str, str], Path] = {}

    def folder(vae: str = "tiny", prediction_type: str = "epsilon") -> Path:
        if (vae, prediction_type) not in built:
            path = tmp_path_factory.mktemp(f"{vae}-{prediction_type}")
            built[vae, prediction_type] = build_model(path, vae, prediction_type)
        return built[vae, prediction_type]

    return folder


@pytest.fixture
def no_hub_cache(tmp_path, monkeypatch) -> Path:
    """An empty local cache of the hub; returns its folder."""
    import huggingface_hub.constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return cache
