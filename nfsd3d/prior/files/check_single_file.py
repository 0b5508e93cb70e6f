"""Checks a single-file model (safetensors, layout of Stable Diffusion's original code) by its header.

The family is recognised from the names and shapes of the tensors. The names are those of the original code of each
family, of ComfyUI's files, and of diffusers.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from nfsd3d.errors import InputError
from nfsd3d.prior.families.table import SUPPORTED
from nfsd3d.prior.files.check_folder import CHANNELS, REFINER, UPSCALER, XL
from nfsd3d.prior.files.configs_and_headers import read_object, tensor_shapes

PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model."}
"""Beginnings of the names of each network's tensors."""

# The UNet's input convolution shows its channels, its cross-attention the width of the text embedding.
_UNET_INPUT = "model.diffusion_model.input_blocks.0.0.weight"
_UNET_TEXT = re.compile(r"model\.diffusion_model\..*attn2\.to_k\.weight")
# A standalone autoencoder has the names of the original code or of diffusers, with or without one of these prefixes.
_AUTOENCODER_PREFIXES = ("first_stage_model.", "vae.", "")
_AUTOENCODER_TENSOR = "encoder.conv_in.weight"

Shapes = Mapping[str, list[int]]

# Patterns of tensor names that occur in files of one family only; the first that occurs counts.
_NAMES: dict[str, str] = {
    r"(^|[._])lora[._]|\.lora_|lora_(A|B|down|up|unet|te)|hada_w1|lokr_w1|oft_blocks": "a LoRA, which adapts a model,",
    r"^(emb_params|clip_[lg]$|string_to_param|<.*>$)": "a textual inversion embedding",
    r"^control_model\.|controlnet_cond_embedding|^input_hint_block\.|controlnet_down_blocks": "a ControlNet",
    r"^control_(all_)?(layers|x_embedder)\.": "a ControlNet",
    r"^(image_proj|ip_adapter)\.": "an IP-Adapter",
    r"^(adapter\.)?body\.\d+\.(resnets|block\d)": "a T2I adapter",
    r"motion_modules\.|temporal_transformer": "a motion module (AnimateDiff)",
    r"time_stack|temporal_(blocks|attention|conv)|temp_(convs|attentions)": "a video model",
    r"position_net\.|\.fuser\.": "a GLIGEN model",
    r"^conditioner\.embedders\.1\.": XL,
    r"^conditioner\.embedders\.0\.transformer\.": XL,
    r"^conditioner\.embedders\.0\.model\.": REFINER,
    r"(^|\.)joint_blocks\.\d+\.": "a Stable Diffusion 3 model",
    r"(^|\.)distilled_guidance_layer\.": "a Chroma model",
    r"(^|\.)(double|single)_stream_modulation(_img|_txt)?\.": "a FLUX.2 model",
    r"(^|\.)early_stream_modulations\.": "a FLUX.3 model",
    r"(^|\.)double_blocks\.\d+\.img_attn\.norm\.key_norm": "a FLUX.1 model",
    r"txt_in\.individual_token_refiner": "a video model (Hunyuan)",
    r"(^|\.)double_layers\.\d+\.attn\.w1q": "an AuraFlow model",
    r"(^|\.)double_stream_blocks\.\d+\.block": "a HiDream model",
    r"(^|\.)transformer_blocks\.\d+\.img_mod\.|txt_in\.text_norm": "a Qwen-Image model",
    r"(^|\.)txtfusion\.": "a Krea model",
    r"(^|\.)(patchify_proj\.|scale_shift_table_a2v)": "a video model (LTX)",
    r"(^|\.)blocks\.\d+\.attn\.qkv_x\.": "a video model (Mochi)",
    r"(^|\.)head\.modulation$": "a video model (Wan)",
    r"^net\.(blocks|x_embedder)\.": "a video model (Cosmos)",
    r"(^|\.)layers\.\d+\.adaLN_modulation\.\d+\.weight": "a Z-Image model",
    r"(^|\.)cap_embedder\.": "a Lumina model",
    r"(^|\.)mlp\.inverted_conv\.|(^|\.)ff\.conv_inverted\.": "a SANA model",
    r"(^|\.)y_embedder\.y_embedding$|caption_projection\.": "a PixArt model",
    r"clip_txt_mapper\.|\.channelwise\.": "a Stable Cascade model",
    r"^noise_augmentor\.|^embedder\.model\.": "an unCLIP model",
    r"^low_scale_model\.": UPSCALER,
    r"^depth_model\.": CHANNELS[5],
    r"time_embed(ding)?\.cond_proj\.": "a latent consistency model (LCM)",
    r"encoder_hid_proj\.": "a DeepFloyd IF or Kandinsky model",
    r"^(model\.)?edm_(mean|std)$|^edm_": "a Playground v2.5 model",
    r"\.(absmax|quant_state|quant_map|weight_scale|scale_weight|weight_packed)\b|scaled_fp8": "a quantised model",
}
_UNET_ALONE = r"^(model\.)?(diffusion_model\.)?(input_blocks|down_blocks|time_embed(ding)?)\."
# Files with one part of a model: a tensor that shows it, and what it is.
_ALONE: dict[str, str] = {
    r"^(vae\.)?(encoder\.conv_in|decoder\.conv_in|quant_conv|post_quant_conv)\.": "an autoencoder alone",
    r"^(encoder|decoder)\.layers\.0\.(weight|conv)": "a tiny autoencoder alone",
    r"^first_stage_model\.": "an autoencoder alone",
    r"^(text_model\.|cond_stage_model\.|transformer\.text_model\.|token_embedding\.|text_projection)"
    r"|^embeddings\.(token|position)_embedding\."
    r"|^(shared\.weight|encoder\.block\.\d+\.layer)": "a text encoder alone",
}


def check_single_file(file: Path, layout: Path, names: Iterable[str], *, needs_vae: bool = True) -> None:
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
    other = family_of(shapes)
    if other is not None:
        family, shown = other
        raise InputError(f"{setting}: is {family} ({found if family in CHANNELS.values() else shown}), {SUPPORTED}")
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


def autoencoder_prefix(shapes: Shapes) -> str | None:
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


def family_of(shapes: Shapes) -> tuple[str, str] | None:
    """(family, what shows it) of a single file that is not Stable Diffusion 1 or 2; None where nothing shows it."""
    # What else a file with a UNet lacks is named where its parts are checked.
    alone = {} if any(re.search(_UNET_ALONE, name) for name in shapes) else _ALONE
    return _named(_NAMES, shapes) or _of_unet(shapes) or _named(alone, shapes)


def _named(patterns: Mapping[str, str], shapes: Shapes) -> tuple[str, str] | None:
    """(family, what shows it) of the first of ``patterns`` that occurs in a tensor's name."""
    found = ((family, name) for pattern, family in patterns.items() for name in shapes if re.search(pattern, name))
    return next(((family, f"tensor {name}") for family, name in found), None)


def _of_unet(shapes: Shapes) -> tuple[str, str] | None:
    """The family that the shapes of the UNet's input and of its class embedding show."""
    for name, shape in shapes.items():
        if name.endswith("input_blocks.0.0.weight") and len(shape) == 4 and shape[1] in CHANNELS:
            return CHANNELS[shape[1]], f"{shape[1]} channels in tensor {name}"
    for name, shape in shapes.items():
        if re.search(r"label_emb\.", name):
            # The pooled embedding and six or five sizes of 256 sines: 1280 + 6 * 256 and 1280 + 5 * 256.
            family = {2816: XL, 2560: REFINER}.get(shape[-1] if len(shape) == 2 else 0)
            return family or "a model with a class embedding, such as unCLIP,", f"tensor {name}"
    return None
