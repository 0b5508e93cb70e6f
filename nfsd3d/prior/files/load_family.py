"""Loads the networks of a model of one of the families, and its text encoders apart from them."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from nfsd3d.prior.families.base import Family
from nfsd3d.prior.files.compare_tensors import check_all_loaded, check_shapes
from nfsd3d.prior.files.configs_and_headers import named_errors, read_object, shapes_in
from nfsd3d.prior.files.family_folder import parts_of
from nfsd3d.prior.files.folder import LoraFile
from nfsd3d.prior.files.load import quiet_loading
from nfsd3d.prior.files.weight_files import weight_files
from nfsd3d.prior.merge_lora import merge_loras

SETTING = "prior.model"
_LIBRARIES = ("diffusers", "transformers")


def empty_networks(folder: Path, family: Family, dtype: torch.dtype) -> tuple[Any, Any]:
    """Denoiser and autoencoder on PyTorch's meta device, in the precision that :func:`load_networks` gives them.

    Raises:
        InputError: their configurations cannot be read, or their weight files have other tensors.
    """
    with quiet_loading():
        return tuple(
            torch.nn.Module.to(network, _precision(network, dtype))
            for network in (_empty(folder, part) for part in (family.denoiser, "vae"))
        )


def load_networks(folder: Path, family: Family, dtype: torch.dtype, loras: Sequence[LoraFile] = ()) -> tuple[Any, Any]:
    """Denoiser, adapted by ``loras``, and autoencoder on the CPU, converted to ``dtype``.

    An autoencoder that overflows in half precision, as its configuration says, is in float32.

    Raises:
        InputError: the files cannot be read as such a model; the message names the part.
    """
    with quiet_loading():
        denoiser, vae = (_load(folder, part, dtype) for part in (family.denoiser, "vae"))
        encoders = [name for name in parts_of(folder, SETTING) if name.startswith("text_encoder")]
        merge_loras(loras, family.pipelines[0], {family.denoiser: denoiser}, encoders, denoiser.config, told=True)
        return denoiser, vae


def _precision(network: Any, dtype: torch.dtype) -> torch.dtype:
    overflows = dtype == torch.float16 and getattr(network.config, "force_upcast", False)
    return torch.float32 if overflows else dtype


def text_pipeline(
    folder: Path,
    family: Family,
    dtype: torch.dtype,
    device: torch.device | str,
    loras: Sequence[LoraFile] = (),
) -> Callable[[bool], Any]:
    """A function that loads the family's pipeline with tokenizers alone, or (True) with text encoders as well.

    The encoders are adapted by ``loras``, and go to ``device`` if their weights fit into its free memory; else they
    stay on the CPU.
    """

    def load(encoders: bool) -> Any:
        import diffusers

        parts = parts_of(folder, SETTING)
        given: dict[str, Any] = {}
        with quiet_loading():
            for name in parts:
                if name.startswith("tokenizer"):
                    with named_errors(f"{SETTING}: {folder / name}"):
                        given[name] = _class(parts[name]).from_pretrained(str(folder / name), local_files_only=True)
                elif encoders and name.startswith("text_encoder"):
                    given[name] = _load(folder, name, dtype).eval().requires_grad_(False)
            kind = getattr(diffusers, family.pipelines[0])
            for name in (*family.lengths, *(name.replace("tokenizer", "text_encoder") for name in family.lengths)):
                given.setdefault(name, None)
            scheduler = _class(parts["scheduler"]).from_pretrained(str(folder / "scheduler"), local_files_only=True)
            with named_errors(f"{SETTING}: {folder}"):
                pipeline = kind(vae=None, scheduler=scheduler, **{family.denoiser: None}, **given)
            pipeline.register_to_config(**_index_settings(folder))
            # Stable Diffusion 3 asks it for the width of the states that stand for T5's, where there is no T5.
            config = SimpleNamespace(**read_object(folder / family.denoiser / "config.json", SETTING))
            object.__setattr__(pipeline, family.denoiser, SimpleNamespace(config=config))
            networks = {name: part for name, part in given.items() if isinstance(part, torch.nn.Module)}
            if networks:
                merge_loras(loras, family.pipelines[0], networks, (family.denoiser,), config)
        place = device if _fits(networks, torch.device(device)) else "cpu"
        for network in networks.values():
            network.to(place)
        return pipeline

    return load


def _index_settings(folder: Path) -> dict[str, Any]:
    """Settings of a pipeline in its index, such as Stable Diffusion XL's for the empty prompt."""
    index = read_object(folder / "model_index.json", SETTING)
    return {name: value for name, value in index.items() if isinstance(value, bool)}


def _class(part: tuple[str, str]) -> Any:
    library, name = part
    if name == "T5GemmaEncoder":  # diffusers adds it to transformers
        importlib.import_module("diffusers.pipelines.prx")
    # Classes of one pipeline are named after its module, as ["kolors", "ChatGLMModel"].
    if library not in _LIBRARIES and not re.fullmatch(r"[a-z0-9_]+", library):
        raise ValueError(f"a part of the library {library}")
    module = library if library in _LIBRARIES else f"diffusers.pipelines.{library}"
    return getattr(importlib.import_module(module), name)


def _load(folder: Path, name: str, dtype: torch.dtype) -> Any:
    """The network of a part, whose weights are all there and of the shapes that its configuration says."""
    place = folder / name
    variant, _ = weight_files(place, SETTING)
    with named_errors(f"{SETTING}: {place}"):
        kind = _class(parts_of(folder, SETTING)[name])
        options = {"variant": variant, "local_files_only": True, "use_safetensors": True}
        if not hasattr(kind, "load_config"):
            network, found = kind.from_pretrained(str(place), dtype=dtype, output_loading_info=True, **options)
            check_all_loaded(network, found["missing_keys"], found["unexpected_keys"], f"{SETTING}: {place}")
            return network
        precision = _precision(_empty(folder, name), dtype)
        return kind.from_pretrained(str(place), torch_dtype=precision, **options)


def _empty(folder: Path, name: str) -> Any:
    """A network of diffusers with the shapes of its configuration, which its weight files have too, and no memory."""
    # Not for text encoders: transformers renames and ties tensors when it loads.
    place = folder / name
    _, files = weight_files(place, SETTING)
    with named_errors(f"{SETTING}: {place}"):
        kind = _class(parts_of(folder, SETTING)[name])
        with torch.device("meta"):
            empty = kind.from_config(kind.load_config(str(place), local_files_only=True))
        check_shapes(empty, shapes_in(files), f"{SETTING}: {place}")
        return empty


def _fits(networks: Mapping[str, torch.nn.Module], device: torch.device) -> bool:
    """Whether ``networks`` fit into the free memory of a CUDA device."""
    if device.type != "cuda":
        return True
    needed = sum(value.nbytes for network in networks.values() for value in network.state_dict().values())
    free, _ = torch.cuda.mem_get_info(device)
    return 1.2 * needed < free
