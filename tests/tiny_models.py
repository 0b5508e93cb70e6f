"""A small model in the diffusers layout of Stable Diffusion, with random weights."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
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
        chunks = [*word[:-1], word[-1] + "</w>"]
        for part in chunks:
            vocab.setdefault(part, len(vocab))
        while len(chunks) > 1:
            if tuple(chunks[:2]) not in merges:
                merges.append(tuple(chunks[:2]))
            chunks = ["".join(chunks[:2]), *chunks[2:]]
            vocab.setdefault(chunks[0], len(vocab))
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
    classes = {name: ["diffusers", type(part).__name__] for name, part in (("unet", unet), ("vae", autoencoder))}
    classes |= {"scheduler": ["diffusers", scheduler_class.__name__]}
    classes |= {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    index = {"_class_name": "StableDiffusionPipeline", "safety_checker": [None, None], **classes}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


# The names of diffusers, and those of the original code that say the same, for the networks of `build_model`.
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    r"time_embedding\.linear_(\d)": lambda m: f"time_embed.{2 * int(m[1]) - 2}",
    r"conv_in": lambda m: "input_blocks.0.0",
    r"conv_norm_out": lambda m: "out.0",
    r"conv_out": lambda m: "out.2",
    r"down_blocks\.(\d)\.resnets\.0\.(\w+)": lambda m: f"input_blocks.{1 + 2 * int(m[1])}.0.{_RESNET[m[2]]}",
    r"down_blocks\.(\d)\.attentions\.0": lambda m: f"input_blocks.{1 + 2 * int(m[1])}.1",
    r"down_blocks\.(\d)\.downsamplers\.0\.conv": lambda m: f"input_blocks.{2 + 2 * int(m[1])}.0.op",
    r"mid_block\.resnets\.(\d)\.(\w+)": lambda m: f"middle_block.{2 * int(m[1])}.{_RESNET[m[2]]}",
    r"mid_block\.attentions\.0": lambda m: "middle_block.1",
    r"up_blocks\.(\d)\.resnets\.(\d)\.(\w+)": lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.0.{_RESNET[m[3]]}",
    r"up_blocks\.(\d)\.attentions\.(\d)": lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.1",
    r"up_blocks\.0\.upsamplers\.0\.conv": lambda m: "output_blocks.1.1.conv",  # that block has no attention
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_VAE = {
    r"conv_shortcut": lambda m: "nin_shortcut",
    r"conv_norm_out": lambda m: "norm_out",
    r"down_blocks\.(\d)\.resnets\.(\d)": lambda m: f"down.{m[1]}.block.{m[2]}",
    r"down_blocks\.(\d)\.downsamplers\.0": lambda m: f"down.{m[1]}.downsample",
    r"up_blocks\.(\d)\.resnets\.(\d)": lambda m: f"up.{2 - int(m[1])}.block.{m[2]}",
    r"up_blocks\.(\d)\.upsamplers\.0": lambda m: f"up.{2 - int(m[1])}.upsample",
    r"mid_block\.resnets\.(\d)": lambda m: f"mid.block_{1 + int(m[1])}",
    r"mid_block\.attentions\.0\.(group_norm|to_q|to_k|to_v|to_out\.0)": lambda m: f"mid.attn_1.{_ATTENTION[m[1]]}",
}


def write_single_file(folder: Path, path: Path) -> Path:
    """The weights of a model with the autoencoder "kl", in one file with the original code's names."""
    from safetensors.torch import load_file, save_file

    def renamed(name: str, rules: dict[str, Callable]) -> str:
        for pattern, new in rules.items():
            name = re.sub(pattern, new, name)
        return name

    tensors = {}
    for name, tensor in load_file(folder / "unet/diffusion_pytorch_model.safetensors").items():
        tensors[f"model.diffusion_model.{renamed(name, _UNET)}"] = tensor
    for name, tensor in load_file(folder / "vae/diffusion_pytorch_model.safetensors").items():
        matrix = "attentions" in name and tensor.ndim == 2  # there a convolution of one pixel
        tensors[f"first_stage_model.{renamed(name, _VAE)}"] = tensor[..., None, None] if matrix else tensor
    for name, tensor in load_file(folder / "text_encoder/model.safetensors").items():
        tensors[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    save_file(tensors, path)
    return path


def write_zeros(path: Path, shapes: Mapping[str, Sequence[int]], **changes: object) -> Path:
    """A safetensors file of bytes that are zero, with tensors of these ``shapes``; ``changes`` to the first's entry."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape)
        entry = {"dtype": "U8", "shape": shape, "data_offsets": [begin, end]}
        header[name] = entry | (changes if begin == 0 else {})
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)  # a sparse file
    return path


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
def single_file(model_folder, tmp_path) -> Path:
    """The weights of the model "kl" in one file with the original code's names."""
    return write_single_file(model_folder("kl"), tmp_path / "model.safetensors")


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    """A small random CLIP model in the layout of transformers; do not change it."""
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder: Path = tmp_path_factory.mktemp("clip")
    words = ["<|startoftext|>", "<|endoftext|>", *(f"{c}</w>" for c in "abcdefgh"), *"abcdefgh"]
    vocab = {word: index for index, word in enumerate(words)}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[])
    assert len(tokenizer) == len(words)
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**text, "vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
        vision_config={**text, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def no_hub_cache(tmp_path, monkeypatch) -> Path:
    """An empty local cache of the hub; returns its folder."""
    import huggingface_hub.constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return cache
