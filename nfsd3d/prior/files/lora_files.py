"""LoRA files that adapt a prior's model (``prior.lora``): found and checked by their headers, without torch.

Read are the names of diffusers and of kohya's scripts; `nfsd3d.prior.merge_lora` converts and merges them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nfsd3d.errors import InputError
from nfsd3d.prior.files.check_single_file import family_of
from nfsd3d.prior.files.configs_and_headers import check_not_quantised, tensor_shapes
from nfsd3d.prior.files.folder import LoraFile
from nfsd3d.settings.paths import user_path

SAVED_AS = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""The files that diffusers and peft write in the folder of a LoRA."""

_LORA_TENSOR = re.compile(r"(^|[._])lora[._]|lora_(A|B|down|up)\b")
# Adapters of other kinds, which only look like LoRAs to the eye.
_OTHERS = {
    r"hada_w1": "LoHa",
    r"lokr_w": "LoKr",
    r"oft_blocks|oft_diag": "OFT",
    r"\bdora_scale\b|lora_magnitude_vector": "DoRA",
}
# kohya's and diffusers' beginnings of the names of the denoiser's modules, and their ends: A [rank, in], B [out, rank].
_DENOISER = re.compile(r"(lora_unet_|unet\.|transformer\.|diffusion_model\.)(?P<module>.+?)")
_FACTOR = re.compile(r"[._](lora[._])?(lora_)?(?P<factor>A|down|B|up)\.weight$")


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
    try:
        path, weight = _path_and_weight(value)
        if path.is_dir():
            inside = sorted(found.name for found in path.glob("*.safetensors"))
            named = next((name for name in SAVED_AS if name in inside), None)
            if named is None:
                raise InputError(
                    f"prior.lora={value}: the folder has no {' or '.join(SAVED_AS)}; give one file of it "
                    f"({', '.join(inside) or 'it has no .safetensors'})"
                )
            path = path / named
        is_file = path.is_file()
    except (OSError, RuntimeError) as error:  # a name that is too long, no permission; ~ of an unknown user
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"prior.lora={value}: cannot be read ({reason}); check the path") from error
    if not is_file:
        raise InputError(
            f"prior.lora={value}: no such file; give FILE.safetensors, FILE.safetensors:0.8 for a weight, or a folder "
            "that diffusers or peft has written"
        )
    if path.suffix != ".safetensors":
        raise InputError(f"prior.lora={value}: not a .safetensors file, and others may run code; convert it")
    return LoraFile(path, weight)


def _path_and_weight(value: str) -> tuple[Path, float]:
    """A path, and the number behind its last colon, if the path with the colon is not there."""
    name, colon, number = value.rpartition(":")
    if not colon or user_path(value).exists() or not name or not user_path(name).exists():
        return user_path(value), 1.0
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise InputError(f"prior.lora={value}: the weight {number.strip()!r} is no finite number; give for example 0.8")
    return user_path(name), weight


def _check_holds_lora(lora: LoraFile) -> None:
    shapes = tensor_shapes(lora.path, lora.setting)
    check_not_quantised(lora.path, lora.setting)
    for pattern, kind in _OTHERS.items():
        if any(re.search(pattern, name) for name in shapes):
            raise InputError(f"{lora.setting}: is an adapter of the kind {kind}, which is not read; give a LoRA")
    if not any(_LORA_TENSOR.search(name) for name in shapes):
        found = family_of(shapes)
        what = f"is {found[0]} ({found[1]})" if found else "holds no LoRA (no tensor with lora in its name)"
        raise InputError(f"{lora.setting}: {what}; give a LoRA, or a whole model as prior.model")


def check_widths(loras: Iterable[LoraFile], denoiser: Mapping[str, list[int]]) -> None:
    """Raises `InputError` if a LoRA was made for another denoiser than one with tensors of these shapes, by name.

    Compared are inputs and outputs of modules that have the same name in both layouts; merging finds the others.
    """
    weights = {_plain(name.removesuffix(".weight")): shape for name, shape in denoiser.items() if len(shape) > 1}
    for lora in loras:
        for name, shape in tensor_shapes(lora.path, lora.setting).items():
            module, is_a = _module_of(name)
            weight = weights.get(module)
            if weight is None or len(shape) < 2:
                continue
            given, expected = (shape[1], weight[1]) if is_a else (shape[0], weight[0])
            if given != expected:
                raise InputError(
                    f"{lora.setting}: was made for another model: its tensor {name} has {given} "
                    f"{'inputs' if is_a else 'outputs'}, where this one has {expected}; give a LoRA for this model, or "
                    "the model it was made for"
                )


def _module_of(name: str) -> tuple[str, bool]:
    """The module of the denoiser to which a factor belongs, in plain letters, and whether it is A; "" for others."""
    end = _FACTOR.search(name)
    found = _DENOISER.fullmatch(name[: end.start()]) if end else None
    if end is None or found is None:
        return "", False
    return _plain(found["module"].replace(".processor", "")), end["factor"] in ("A", "down")


def _plain(name: str) -> str:
    """A module's name with the same letters in every layout."""
    return name.replace(".", "_")
