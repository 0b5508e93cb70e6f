"""LoRA files that adapt a prior's model (``prior.lora``): found and checked by their headers, without torch.

Read are the names of diffusers and of kohya's scripts; `nfsd3d.prior.merge_lora` converts and merges them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from nfsd3d.errors import InputError
from nfsd3d.prior.files.check_single_file import family_of
from nfsd3d.prior.files.configs_and_headers import tensor_shapes
from nfsd3d.prior.files.folder import LoraFile
from nfsd3d.settings.paths import user_path

SAVED_AS = "pytorch_lora_weights.safetensors"
"""The file that diffusers writes in the folder of a LoRA."""

_LORA_TENSOR = re.compile(r"(^|[._])lora[._]|lora_(A|B|down|up)\b|lokr_w")
# Adapters of other kinds, which only look like LoRAs to the eye.
_OTHERS = {r"hada_w1": "LoHa", r"oft_blocks|oft_diag": "OFT", r"\bdora_scale\b": "DoRA in kohya's layout"}
# kohya's and diffusers' beginnings of the names of the denoiser's modules, and their ends: the factor A [rank, in].
_DENOISER = re.compile(r"(lora_unet_|unet\.|transformer\.|diffusion_model\.)(?P<module>.+?)")
_FACTOR_A = re.compile(r"[._](lora[._])?(lora_)?(A|down)\.weight$")


def locate_loras(given: str | Sequence[str] | None) -> tuple[LoraFile, ...]:
    """The files of ``prior.lora``: FILE, FILE:WEIGHT, or a list of such, where a FILE is also a folder of diffusers.

    Raises:
        InputError: there is no such file, or it holds no LoRA; the message names what it holds.
    """
    values = [] if given is None else [given] if isinstance(given, str) else given
    found = tuple(_located(value) for value in values)
    paths = [lora.path.resolve() for lora in found]
    for lora, path in zip(found, paths, strict=True):
        if paths.count(path) > 1:
            raise InputError(f"{lora.setting}: is given twice; give it once, with one weight (FILE:0.8)")
        _check_holds_lora(lora)
    return found


def _located(value: str) -> LoraFile:
    path, weight = user_path(value), 1.0
    name, colon, number = value.rpartition(":")
    if colon and name and not path.exists() and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", number):
        path, weight = user_path(name), float(number)
    if path.is_dir():
        path = path / SAVED_AS
    if not path.is_file():
        raise InputError(
            f"prior.lora={value}: no such file; give FILE.safetensors, FILE.safetensors:0.8 for a weight, or a folder "
            f"with {SAVED_AS}"
        )
    if path.suffix != ".safetensors":
        raise InputError(f"prior.lora={value}: not a .safetensors file, and others may run code; convert it")
    return LoraFile(path, weight)


def _check_holds_lora(lora: LoraFile) -> None:
    shapes = tensor_shapes(lora.path, lora.setting)
    for pattern, kind in _OTHERS.items():
        if any(re.search(pattern, name) for name in shapes):
            raise InputError(f"{lora.setting}: is an adapter of the kind {kind}, which diffusers does not read")
    if not any(_LORA_TENSOR.search(name) for name in shapes):
        found = family_of(shapes)
        what = f"is {found[0]} ({found[1]})" if found else "holds no LoRA (no tensor with lora in its name)"
        raise InputError(f"{lora.setting}: {what}; give a LoRA, or a whole model as prior.model")


def check_widths(loras: Iterable[LoraFile], denoiser: Mapping[str, list[int]]) -> None:
    """Raises `InputError` if a LoRA was made for another denoiser than one with tensors of these shapes, by name.

    Compared are inputs of modules that have the same name in both layouts; merging finds the others.
    """
    inputs = {_plain(name.removesuffix(".weight")): shape[1] for name, shape in denoiser.items() if len(shape) > 1}
    for lora in loras:
        for name, shape in tensor_shapes(lora.path, lora.setting).items():
            module = _module_of(name)
            expected = inputs.get(module) if module is not None else None
            if expected is not None and len(shape) > 1 and shape[1] != expected:
                raise InputError(
                    f"{lora.setting}: was made for another model: its tensor {name} takes {shape[1]} numbers, where "
                    f"this one has {expected}; give a LoRA for this model, or the model it was made for"
                )


def _module_of(name: str) -> str | None:
    """The module of the denoiser to which a factor A belongs, in plain letters; None for all other tensors."""
    end = _FACTOR_A.search(name)
    found = _DENOISER.fullmatch(name[: end.start()]) if end else None
    return None if found is None else _plain(found["module"].replace(".processor", ""))


def _plain(name: str) -> str:
    """A module's name with the same letters in every layout."""
    return name.replace(".", "_")
