"""Checks a single-file model (safetensors, layout of Stable Diffusion's original code) by its header."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nfsd3d.errors import InputError

# The UNet's input convolution shows its channels, its cross-attention the width of the text embedding.
_UNET_INPUT = "model.diffusion_model.input_blocks.0.0.weight"
_UNET_TEXT = re.compile(r"model\.diffusion_model\..*attn2\.to_k\.weight")
_PARTS = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model."}


def check_kind(file: Path, layout: Path, names: Iterable[str]) -> None:
    """Checks that the tensors in ``file`` belong to a model with the configurations in ``layout``.

    Raises:
        InputError: they do not; the message proposes the presets ``names``.
    """
    setting = f"prior.model={file}"
    shapes = tensor_shapes(file, setting)
    for part, prefix in _PARTS.items():
        if not any(name.startswith(prefix) for name in shapes):
            raise InputError(
                f"{setting}: holds no {part} (no tensor {prefix}*); a single file needs the UNet, the autoencoder and "
                "the text encoder of Stable Diffusion 1 or 2, all in the layout of the original code"
            )
    config = read_object(layout / "unet" / "config.json")
    channels, width = config.get("in_channels"), config.get("cross_attention_dim")
    found_channels = _second(shapes.get(_UNET_INPUT, []))
    found_width = next((_second(shape) for name, shape in sorted(shapes.items()) if _UNET_TEXT.fullmatch(name)), 0)
    if (found_channels, found_width) != (channels, width):
        raise InputError(
            f"{setting}: its UNet takes {found_channels} channels and text of width {found_width}, where {layout} says "
            f"{channels} and {width}; choose another of prior={', '.join(names)}, or prior.layout=FOLDER"
        )


def tensor_shapes(file: Path, setting: str) -> dict[str, list[int]]:
    """The shape of each tensor in a safetensors file, from its header alone.

    Raises:
        InputError: it cannot be read; the message begins with ``setting``.
    """
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= file.stat().st_size:
                raise ValueError("no safetensors header")
            header = json.loads(stream.read(length))
        return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{setting}: cannot be read as safetensors ({error}); replace it with an intact copy"
        ) from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a configuration file.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        raise InputError(
            f"prior.model, prior.layout: {path} cannot be read ({error}); replace it with an intact copy"
        ) from error
    return content


def _second(shape: list[int]) -> int:
    return shape[1] if len(shape) > 1 else 0
