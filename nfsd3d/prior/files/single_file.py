"""Checks a single-file model (safetensors, layout of Stable Diffusion's original code) by its header."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from nfsd3d.errors import InputError
from nfsd3d.prior.files.check_single_file import check_tensors, family_of
from nfsd3d.prior.files.configs_and_headers import read_object, tensor_shapes

PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model."}
"""Beginnings of the names of each network's tensors."""

# The UNet's input convolution shows its channels, its cross-attention the width of the text embedding.
_UNET_INPUT = "model.diffusion_model.input_blocks.0.0.weight"
_UNET_TEXT = re.compile(r"model\.diffusion_model\..*attn2\.to_k\.weight")
# A standalone autoencoder has the names of the original code or of diffusers, with or without one of these prefixes.
_AUTOENCODER_PREFIXES = ("first_stage_model.", "vae.", "")
_AUTOENCODER_TENSOR = "encoder.conv_in.weight"


def check_kind(file: Path, layout: Path, names: Iterable[str], *, needs_vae: bool = True) -> None:
    """Checks that the tensors in ``file`` belong to a model with the configurations in ``layout``.

    Without ``needs_vae`` the autoencoder may be missing.

    Raises:
        InputError: they do not; the message names the family of another model, or proposes the presets ``names``.
    """
    setting = f"prior.model={file}"
    shapes = tensor_shapes(file, setting)
    config = read_object(layout / "unet" / "config.json")
    channels, width = config.get("in_channels", 4), config.get("cross_attention_dim", 1280)
    found_channels = _second(shapes.get(_UNET_INPUT, []))
    found_width = next((_second(shape) for name, shape in sorted(shapes.items()) if _UNET_TEXT.fullmatch(name)), 0)
    found = f"its UNet takes {found_channels} channels and text of width {found_width}"
    check_tensors(shapes, setting, found)
    for part, prefix in PREFIXES.items():
        if not any(name.startswith(prefix) for name in shapes) and (part != "vae" or needs_vae):
            remedy = "give an autoencoder as prior.vae=FILE or FOLDER" if part == "vae" else _WHOLE
            raise InputError(f"{setting}: holds no {part} (no tensor {prefix}*); {remedy}")
    if (found_channels, found_width) != (channels, width):
        raise InputError(
            f"{setting}: {found}, where {layout} says {channels} and {width}; choose another of "
            f"prior={', '.join(names)}, or prior.layout=FOLDER"
        )


_WHOLE = (
    "a single file needs the UNet, the autoencoder and the text encoder of Stable Diffusion 1 or 2, all in the layout "
    "of the original code"
)


def autoencoder_prefix(shapes: Mapping[str, list[int]]) -> str | None:
    """The beginning of the names of an autoencoder's tensors in a file; None if it holds no autoencoder."""
    return next((prefix for prefix in _AUTOENCODER_PREFIXES if prefix + _AUTOENCODER_TENSOR in shapes), None)


def check_autoencoder(file: Path, setting: str) -> None:
    """Raises `InputError` unless ``file`` holds an AutoencoderKL with its encoder."""
    shapes = tensor_shapes(file, setting)
    if autoencoder_prefix(shapes) is None:
        family = family_of(shapes)
        what = f"is {family[0]} ({family[1]})" if family else f"holds no autoencoder (no tensor {_AUTOENCODER_TENSOR})"
        raise InputError(
            f"{setting}: {what}; give an autoencoder's file, such as vae-ft-mse-840000, or a folder with config.json"
        )


def _second(shape: list[int]) -> int:
    return shape[1] if len(shape) > 1 else 0
