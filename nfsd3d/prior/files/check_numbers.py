"""Checks the numbers in the configuration of a network."""

from collections.abc import Mapping
from typing import Any

from nfsd3d.errors import InputError

# Settings of the networks that are whole numbers, or lists of such, and their ranges. Numbers outside are damage:
# building a network of 10⁹ layers would not end.
_WIDTHS = (
    "in_channels out_channels latent_channels block_out_channels encoder_block_out_channels decoder_block_out_channels "
    "norm_num_groups attention_head_dim num_attention_heads hidden_size intermediate_size cross_attention_dim "
    "vocab_size max_position_embeddings"
)
_RANGES = {
    **dict.fromkeys(("num_encoder_blocks", "num_decoder_blocks"), range(1001)),
    **dict.fromkeys(("layers_per_block", "num_hidden_layers"), range(1, 1001)),
    **dict.fromkeys(_WIDTHS.split(), range(1, 1_000_001)),
}


def check_not_quantised_config(part: str, config: Mapping[str, Any]) -> None:
    """Raises `InputError` for the configuration of a quantised network, which is named ``part`` in the message."""
    if config.get("quantization_config") is not None:
        raise InputError(
            f"prior.model: the {part} is quantised (quantization_config), which is not read; give it in float16, "
            "bfloat16 or float32"
        )


def check_multiple(image_size: int, pixels: int, model: str) -> None:
    """Raises `InputError` unless images of ``image_size`` have whole latents of so many ``pixels`` along an axis."""
    if image_size % pixels:
        raise InputError(
            f"prior.image_size={image_size}: must be a multiple of {pixels} for {model}; "
            f"set {round(image_size / pixels) * pixels or pixels}"
        )


def check_numbers(part: str, config: Mapping[str, Any]) -> None:
    """Raises `InputError` if a number in a network's configuration is of another type or out of its range.

    ``part`` is the network's name for the message.
    """
    check_not_quantised_config(part, config)
    wrong = [
        f"{key}={config[key]!s:.40} is not a whole number from {allowed[0]} to {allowed[-1]}, or a list of them"
        for key, allowed in _RANGES.items()
        for value in _entries(config.get(key))
        if value is not None and not (type(value) is int and value in allowed)
    ]
    scale, shift = config.get("scaling_factor", 1.0), config.get("shift_factor")
    if not (_is_finite(scale) and scale > 0):
        wrong.append(f"scaling_factor={scale!s:.40} is not a positive number below 1e9")
    if type(config.get("eos_token_id", 0)) is not int:
        wrong.append(f"eos_token_id={config['eos_token_id']!s:.40} is not a whole number")
    if shift is not None and not _is_finite(shift):
        wrong.append(f"shift_factor={shift!s:.40} is not a number below 1e9")
    if wrong:
        raise InputError(f"prior.model: the {part}'s {wrong[0]}; replace its config.json with an intact copy")


def _entries(value: Any) -> list[Any]:
    """The entries of a list that is not empty, or the value itself."""
    return list(value) if isinstance(value, list | tuple) and value else [value]


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9  # false for NaN
