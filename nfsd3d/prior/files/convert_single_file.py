"""Loads networks from a single file in the layout of Stable Diffusion's original code.

Each network's tensors are renamed once without data, to compare them with the configuration, and then read.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nfsd3d.errors import InputError
from nfsd3d.prior.files.check_single_file import PREFIXES, autoencoder_prefix
from nfsd3d.prior.files.compare_tensors import check_shapes, meta_tensors, present_name, read_tensors
from nfsd3d.prior.files.configs_and_headers import header_shapes, json_object, named_errors

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

_TEXT = PREFIXES["text_encoder"]
_CLIP, _OPEN_CLIP = f"{_TEXT}transformer.", f"{_TEXT}model."


def load_unet(file: Path, layout: Path, dtype: torch.dtype) -> UNet2DConditionModel:
    """The UNet in ``file``, with the configuration in ``layout``.

    Raises:
        InputError: tensors are missing, extra, or of other shapes than the configuration's.
    """
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    prefix, place = PREFIXES["unet"], f"prior.model: {file}"
    with named_errors(f"prior.model: {file}"):
        config = json_object(layout / "unet" / "config.json")
        tensors = meta_tensors({k: shape for k, shape in header_shapes(file).items() if k.startswith(prefix)})
        renamed = convert_ldm_unet_checkpoint(dict(tensors), _with_defaults(UNet2DConditionModel, config))
        with torch.device("meta"):
            network = UNet2DConditionModel.from_config(config)
        check_shapes(network, {name: list(tensor.shape) for name, tensor in renamed.items()}, place)
        used = {id(tensor) for name, tensor in renamed.items() if name in network.state_dict()}
        extra = next((name for name, tensor in tensors.items() if id(tensor) not in used), None)
        if extra is not None:
            raise InputError(
                f"{place} holds weights that {layout / 'unet'} does not describe (first: {extra}); choose another of "
                "prior=sd15, sd21, sd21-768, or prior.layout=FOLDER"
            )
        return UNet2DConditionModel.from_single_file(
            read_tensors(file, prefix), config=str(layout), subfolder="unet", local_files_only=True, torch_dtype=dtype
        )


def load_vae(file: Path, layout: Path, dtype: torch.dtype, setting: str = "prior.model") -> AutoencoderKL:
    """The autoencoder in ``file``, alone or within a model, with the configuration in ``layout``.

    Its names are those of the original code or of diffusers.

    Raises:
        InputError: tensors are missing or of other shapes; the configuration is that of another kind.
    """
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    with named_errors(f"{setting}: {file}"):
        config = json_object(layout / "vae" / "config.json")
        kind = config.get("_class_name", "AutoencoderKL")
        if kind != "AutoencoderKL":
            raise InputError(
                f"{setting}: {file} is an AutoencoderKL without a configuration, and that in {layout / 'vae'} is of an "
                f"{kind}; give a folder with config.json"
            )
        shapes = header_shapes(file)
        prefix = autoencoder_prefix(shapes) or ""
        with torch.device("meta"):
            network = AutoencoderKL.from_config(config)

        def renamed(tensors: dict[str, Any]) -> dict[str, Any]:
            if not any(".down_blocks." in name for name in tensors):
                return convert_ldm_vae_checkpoint(tensors, _with_defaults(AutoencoderKL, config))
            present = {present_name(name.removeprefix(prefix)): tensor for name, tensor in tensors.items()}
            return {name: tensor for name, tensor in present.items() if name in network.state_dict()}

        own = meta_tensors({name: shape for name, shape in shapes.items() if name.startswith(prefix)})
        found = {name: list(tensor.shape) for name, tensor in renamed(own).items()}
        check_shapes(network, found, f"{setting}: {file}")
        data = renamed(read_tensors(file, prefix))
        return AutoencoderKL.from_single_file(
            data, config=str(layout), subfolder="vae", local_files_only=True, torch_dtype=dtype
        )


def load_text_encoder(file: Path, layout: Path, dtype: torch.dtype) -> CLIPTextModel:
    """CLIP's text encoder in ``file``, with the configuration in ``layout``.

    Its names are those of transformers, with or without the level ``text_model``, or those of OpenCLIP.

    Raises:
        InputError: tensors are missing or of other shapes than the configuration's.
    """
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint, create_diffusers_clip_model_from_ldm
    from transformers import CLIPTextConfig, CLIPTextModel

    with named_errors(f"prior.model: {file}"):
        with torch.device("meta"):
            network = CLIPTextModel(CLIPTextConfig.from_pretrained(str(layout / "text_encoder")))
        shapes = {name: shape for name, shape in header_shapes(file).items() if name.startswith(_TEXT)}
        if any(name.startswith(_OPEN_CLIP) for name in shapes):
            tensors = convert_open_clip_checkpoint(network, meta_tensors(shapes), prefix=_OPEN_CLIP)
            found = {present_name(name): list(tensor.shape) for name, tensor in tensors.items()}
        else:
            found = {present_name(name.removeprefix(_CLIP)): shape for name, shape in shapes.items()}
        check_shapes(network, found, f"prior.model: {file}")
        data = {_with_text_model(name): tensor for name, tensor in read_tensors(file, _TEXT).items()}
        return create_diffusers_clip_model_from_ldm(
            CLIPTextModel, data, config=str(layout), subfolder="text_encoder", local_files_only=True, torch_dtype=dtype
        )


def _with_text_model(name: str) -> str:
    """The name of a tensor of CLIP's text encoder with the level ``text_model``, which diffusers looks for."""
    rest = name.removeprefix(_CLIP)
    return name if rest == name or rest.startswith("text_model.") else f"{_CLIP}text_model.{rest}"


def _with_defaults(network: Any, config: dict[str, Any]) -> dict[str, Any]:
    """``config`` with the defaults of the network's class for what it leaves out."""
    parameters = inspect.signature(network.__init__).parameters.values()
    return {value.name: value.default for value in parameters if value.default is not value.empty} | config
