"""Recognises the family of a single file from the names and shapes of its tensors, before anything is loaded.

The names are those of the original code of each family, of ComfyUI's files, and of diffusers.
"""

import re
from collections.abc import Mapping

from nfsd3d.errors import InputError
from nfsd3d.prior.files.folder_families import CHANNELS, REFINER, SUPPORTED, UPSCALER, XL

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


def family_of(shapes: Shapes) -> tuple[str, str] | None:
    """(family, what shows it) of a single file that is not Stable Diffusion 1 or 2; None where nothing shows it."""
    for pattern, family in _NAMES.items():
        name = next((name for name in shapes if re.search(pattern, name)), None)
        if name is not None:
            return family, f"tensor {name}"
    return _of_unet(shapes) or _alone(shapes)


def check_tensors(shapes: Shapes, setting: str, unet: str) -> None:
    """Raises `InputError` if the tensors are those of another family than Stable Diffusion 1 or 2.

    ``unet`` says what the UNet takes, for the message where its channels show the family.
    """
    found = family_of(shapes)
    if found is not None:
        family, shown = found
        raise InputError(f"{setting}: is {family} ({unet if family in CHANNELS.values() else shown}), {SUPPORTED}")


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


def _alone(shapes: Shapes) -> tuple[str, str] | None:
    if any(re.search(_UNET_ALONE, name) for name in shapes):
        return None  # what else the file lacks is named where its parts are checked
    for pattern, family in _ALONE.items():
        name = next((name for name in shapes if re.search(pattern, name)), None)
        if name is not None:
            return family, f"tensor {name}"
    return None
