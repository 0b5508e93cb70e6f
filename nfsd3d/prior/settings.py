"""Settings of the pretrained latent diffusion model."""

from dataclasses import dataclass
from typing import Literal

from pydantic import PositiveInt

from nfsd3d.settings.types import Name, Names


@dataclass(frozen=True, kw_only=True)
class PriorSettings:
    """Which pretrained latent diffusion model distils, and where its files are."""

    name: Name
    """Preset: shapes (embedded in the package), sd15, sd21, sd21-768, or a family: sdxl, sd3, sd35, sana, ..."""
    model: Name | None
    """Weights instead of the preset's: a hub id, a folder in the diffusers layout, or a .safetensors file."""
    layout: Name | None = None
    """Hub id or folder with configurations and tokenizer for a single-file ``model``; null: the preset's."""
    vae: Name | None = None
    """Autoencoder instead of the model's: a hub id, a folder (for example a tiny one's), or a .safetensors file."""
    lora: Names | None = None
    """LoRA files added to the weights: FILE.safetensors, FILE.safetensors:0.8 for a weight, or a list of them."""
    image_size: PositiveInt | None = None
    """Side in pixels of the images that the teacher sees; null: its own. Smaller ones are cheaper."""
    clock: Literal["own", "flow"] = "own"
    """``flow`` serves a diffusion model as a rectified flow: times and latents of equal SNR, the same noise."""
    cache: bool = True
    """Keep prompts' embeddings of the families on disk, so that a known prompt needs no text encoder."""
    offline: bool
    """Use only the local Hugging Face cache; no network access."""
