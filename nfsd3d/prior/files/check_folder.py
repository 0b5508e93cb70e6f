"""Checks that a folder is a Stable Diffusion model: its files, and its family by the configurations; nothing is loaded.

Other families that nfsd3d distils have presets, and checks of their own in `nfsd3d.prior.files.family_folder`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nfsd3d.errors import InputError
from nfsd3d.prior.families.table import SUPPORTED, preset_of
from nfsd3d.prior.files.configs_and_headers import optional_object
from nfsd3d.prior.files.folder import AUTOENCODER, MODEL, Contents, files_in, first_missing

UPSCALER = "an upscaler"
REFINER = "a Stable Diffusion XL refiner"
XL = "a Stable Diffusion XL model"
CHANNELS = {
    5: "a depth-conditioned model",
    7: UPSCALER,
    8: "an instruct-pix2pix model, which edits images,",
    9: "an inpainting model",
}
"""Families by the input channels of a UNet; 4 are the latents alone."""

# Beginnings of class names in model_index.json and of networks; the first that fits counts.
_CLASSES: dict[str, str] = {
    "StableDiffusionXL": XL,
    "StableDiffusion3|SD3": "a Stable Diffusion 3 model",
    "StableDiffusionInpaint|PaintByExample": CHANNELS[9],
    "StableDiffusionDepth2Img": CHANNELS[5],
    "StableDiffusionInstructPix2Pix": CHANNELS[8],
    "StableDiffusion(Latent)?Upscale": UPSCALER,
    "StableDiffusionImageVariation": "an image variation model, which takes no text,",
    "StableDiffusionGLIGEN": "a GLIGEN model",
    "StableDiffusionLDM3D": "an LDM3D model",
    ".*ControlNet": "a ControlNet",
    "StableUnCLIP|UnCLIP": "an unCLIP model",
    "LatentConsistency": "a latent consistency model (LCM), whose guidance is distilled into it,",
    "StableVideo|.*Video|AnimateDiff|MotionAdapter|UNetMotion|UNetSpatioTemporal|.*3DModel|.*3DConditionModel|I2VGen"
    "|Wan|LTX|Mochi|Allegro|Latte|SkyReels|Cosmos|Helios|Kandinsky5T2V": "a video model",
    "Flux2": "a FLUX.2 model",
    "Flux3": "a FLUX.3 model",
    "Flux": "a FLUX.1 model, whose guidance is distilled into it,",
    "PixArt": "a PixArt model",
    "Kandinsky": "a Kandinsky model",
    "IF[A-Z]": "a DeepFloyd IF model",
    "StableCascade|Wuerstchen": "a Stable Cascade model",
    "Sana": "a SANA model",
    "Lumina": "a Lumina model",
    "AuraFlow": "an AuraFlow model",
    "ZImage": "a Z-Image model",
    "Chroma": "a Chroma model",
    "CogView": "a CogView model",
    "QwenImage": "a Qwen-Image model",
    "Hunyuan": "a Hunyuan model",
    "HiDream": "a HiDream model",
    "PRX": "a PRX model",
    "Krea": "a Krea model",
    "Kolors": "a Kolors model",
    "OmniGen": "an OmniGen model",
    "AltDiffusion": "an AltDiffusion model",
    "LDM": "a latent diffusion model before Stable Diffusion",
    "Audio|MusicLDM|StableAudio": "an audio model",
    "ShapE": "a Shap-E model",
    "Amused|UVit": "an aMUSEd model",
    "UniDiffuser": "a UniDiffuser model",
    "VersatileDiffusion": "a Versatile Diffusion model",
    "(Asymmetric)?Autoencoder|VQModel|ConsistencyDecoderVAE": "an autoencoder alone",
    "UNet": "a UNet alone",
    "CLIPText|T5Encoder|T5ForConditional|CLIPModel": "a text encoder alone",
    "(Multi|T2I)Adapter": "a T2I adapter",
}
_BY_ADDITION = {
    "text": "a DeepFloyd IF model",
    **dict.fromkeys(("image", "image_hint", "text_image"), "a Kandinsky model"),
}
# Settings of a UNet for inputs that this program does not give, with the values that mean none.
_CONDITIONS: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("addition_embed_type", "class_embed_type", "num_class_embeds", "time_cond_proj_dim"), (None,)),
    **dict.fromkeys(("encoder_hid_dim", "encoder_hid_dim_type"), (None,)),
    "time_embedding_type": (None, "positional"),
    "attention_type": (None, "default"),
    "dual_cross_attention": (None, False),
}


def check_folder(folder: Path, setting: str, contents: Contents = MODEL) -> Path:
    """``folder`` itself, if it holds the required files of a supported family.

    Raises:
        InputError: it cannot be read, is of another family, or lacks a file; the message names the first one.
    """
    files = files_in(folder, setting)
    check_family(folder, setting, contents)
    missing = first_missing(files, contents)
    if missing is not None:
        raise InputError(f"{setting}: {folder} lacks {missing}; {contents.description}")
    return folder


def check_family(folder: Path, setting: str, contents: Contents = MODEL) -> None:
    """Checks that the configurations in ``folder``, as far as they exist, fit Stable Diffusion 1 or 2.

    Raises:
        InputError: they are those of another family; the message names it, and what shows it.
    """
    if contents is not AUTOENCODER:
        pipeline = optional_object(folder / "model_index.json").get("_class_name")
        known = preset_of(pipeline)
        if known is not None:
            preset, family = known
            title = f"{setting}: is a {family.title} model (model_index.json: {pipeline})"
            raise InputError(f"{title}, which this preset does not load; use prior={preset}")
        _refuse(family_of(folder), setting)
        return
    name = optional_object(folder / "config.json", setting).get("_class_name", "AutoencoderKL")
    if name not in AUTOENCODERS:
        raise InputError(
            f"{setting}: is a {name} (config.json), which nfsd3d does not support; "
            f"choose an {' or '.join(AUTOENCODERS)} made for the model"
        )


def check_unet(config: dict[str, Any], setting: str) -> None:
    """Raises `InputError` if a UNet with this configuration needs more than noisy latents, a timestep and text."""
    _refuse(next(_of_unet(config), None), setting)


def _refuse(found: tuple[str, str] | None, setting: str) -> None:
    if found is not None:
        raise InputError(f"{setting}: is {found[0]} ({found[1]}), {SUPPORTED}")


def family_of(folder: Path) -> tuple[str, str] | None:
    """(family, what shows it) of a model folder that is not Stable Diffusion 1 or 2; None where nothing shows it."""
    return next(_signs(folder), None)


AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny")
"""Classes of autoencoders that a prior can have."""


def _signs(folder: Path) -> Iterator[tuple[str, str]]:
    """(family, what shows it) for each sign that the model in ``folder`` is of another family."""
    index = optional_object(folder / "model_index.json")
    unet = optional_object(folder / "unet" / "config.json")
    classes = {"model_index.json": index.get("_class_name")}
    for part in ("transformer", "prior", "decoder"):
        classes[f"{part}/config.json"] = optional_object(folder / part / "config.json").get("_class_name")
    for name, class_name in classes.items():
        family = _of_class(class_name)
        if family == XL and unet.get("cross_attention_dim") == _REFINER_WIDTH:
            family = REFINER
        if family is not None:
            yield family, f"{name}: {class_name}"
    if not index and not unet:
        yield from _alone(folder)
    if unet:
        yield from _of_unet(unet)
    for name, class_name in classes.items():
        if class_name is not None and name != "model_index.json":
            yield f"a model with a {class_name}", name
    kind = optional_object(folder / "text_encoder" / "config.json").get("model_type", "clip_text_model")
    if kind not in ("clip_text_model", "clip"):
        yield f"a model with a text encoder of type {kind}", "text_encoder/config.json"
    class_name = optional_object(folder / "vae" / "config.json").get("_class_name", "AutoencoderKL")
    if class_name not in AUTOENCODERS:
        yield f"a model with the autoencoder {class_name}", "vae/config.json"


_REFINER_WIDTH = 1280


def _alone(folder: Path) -> Iterator[tuple[str, str]]:
    """Signs of a folder that holds one network, or an adapter, instead of a model."""
    for name in ("adapter_config.json", "pytorch_lora_weights.safetensors"):
        if (folder / name).is_file():
            yield "a LoRA, which adapts a model,", name
    config = optional_object(folder / "config.json")
    architectures = config.get("architectures")
    class_name = config.get("_class_name") or (isinstance(architectures, list) and next(iter(architectures), None))
    if class_name:
        yield _of_class(class_name) or f"a {class_name}", f"config.json: {class_name}"


def _of_class(name: object) -> str | None:
    if not isinstance(name, str):
        return None
    return next((family for beginning, family in _CLASSES.items() if re.match(beginning, name)), None)


def _of_unet(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Signs in a UNet's configuration: conditions that this program does not give, channels, another class."""
    class_name = config.get("_class_name", _UNET)
    if class_name != _UNET:
        yield _of_class(class_name) or f"a model with a {class_name}", f"unet/config.json: {class_name}"
    given = {name: config.get(name) for name, absent in _CONDITIONS.items() if config.get(name) not in absent}
    channels, out = config.get("in_channels", 4), config.get("out_channels", 4)
    if given.get("addition_embed_type") == "text_time":
        refiner = config.get("cross_attention_dim") == _REFINER_WIDTH
        yield REFINER if refiner else XL, "unet/config.json: addition_embed_type=text_time"
    elif given.get("addition_embed_type") in _BY_ADDITION:
        addition = given["addition_embed_type"]
        yield _BY_ADDITION[str(addition)], f"unet/config.json: addition_embed_type={addition}"
    elif isinstance(channels, int) and channels in CHANNELS:
        yield CHANNELS[channels], f"unet/config.json: in_channels={channels}"
    elif "time_cond_proj_dim" in given:
        yield "a latent consistency model (LCM)", f"unet/config.json: {_pairs(given)}"
    elif given.get("class_embed_type") == "projection":
        yield "an unCLIP model, or another with a class embedding,", f"unet/config.json: {_pairs(given)}"
    elif given:
        yield "a model with a condition besides text", f"unet/config.json: {_pairs(given)}"
    elif type(channels) is type(out) and channels != out:  # of other types it is damaged, which is named later
        yield "a model that does not predict its latents alone", f"unet/config.json: {channels} to {out} channels"


_UNET = "UNet2DConditionModel"


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())
