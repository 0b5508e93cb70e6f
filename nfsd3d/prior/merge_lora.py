"""Adds LoRAs (2106.09685) to the weights of a model's networks: W + weight alpha / rank B A.

diffusers converts the names of the known layouts. Merged, a LoRA costs nothing at run time, and VSD's own network
(`nfsd3d.prior.lora`) adapts the result like any other model.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nfsd3d.errors import InputError
from nfsd3d.prior.files.configs_and_headers import named_errors, optional_object
from nfsd3d.prior.files.folder import LoraFile

_MODERN = re.compile(r"\.lora_([AB])\.(weight|bias)$")
_PEFT = "base_model.model."
# kohya's names have underscores for dots; diffusers converts those of some families only.
_KOHYA = re.compile(
    r"lora_(?P<part>unet|transformer|te[123]?)_(?P<module>.+)\.(lora_(?P<factor>down|up)\.weight|alpha)"
)


@dataclass
class _Change:
    """The factors of one module's change, and alpha (None: the rank)."""

    a: Tensor | None = None
    b: Tensor | None = None
    bias: Tensor | None = None
    alpha: float | None = None


def merge_loras(
    loras: Sequence[LoraFile],
    pipeline: str,
    networks: Mapping[str, nn.Module],
    others: Sequence[str] = (),
    unet_config: Any = None,
    *,
    told: bool = False,
) -> None:
    """Adds ``loras`` to the weights of ``networks``, which have the names of their folders, such as unet.

    What a file has for the parts ``others`` is left to another call. What fits no part is left out, with a warning.

    Args:
        loras: checked files.
        pipeline: the class of diffusers whose layouts of LoRAs are read.
        networks: the networks, in any precision, not compiled; on PyTorch's meta device nothing but names and shapes
            is checked.
        others: names of the model's other parts.
        unet_config: the configuration of the UNet, whose blocks some layouts count in another way.
        told: whether an earlier call has warned of what fits no part.

    Raises:
        InputError: a file cannot be read, has nothing for this model, or tensors of other shapes.
    """
    parts = (*networks, *others)
    for lora in loras:
        denoiser = next(part for part in parts if not part.startswith("text_encoder"))
        with named_errors(lora.setting):
            tensors, alphas, settings = _read(lora, pipeline, denoiser, unet_config)
        # Names of no part are told once, with the denoiser.
        lost = [name for name in tensors if denoiser in networks and name.partition(".")[0] not in parts]
        for part, network in networks.items():
            lost += _merge(lora, part, network, tensors, alphas, settings)
        _tell(lora, list(tensors), lost, told=told)


def _tell(lora: LoraFile, names: list[str], lost: list[str], *, told: bool) -> None:
    if len(lost) == len(names):
        first = names[0] if names else "none"
        raise InputError(f"{lora.setting}: fits nothing in this model (first tensor: {first}); give one made for it")
    if lost and not told:
        logging.getLogger(__name__).warning(
            "warning: %s: %d of its %d tensors fit nothing in the model and are left out (first: %s)",
            *(lora.setting, len(lost), len(names), lost[0]),
        )


def _read(
    lora: LoraFile, pipeline: str, denoiser: str, unet_config: Any
) -> tuple[dict[str, Tensor], dict[str, float], dict[str, Any]]:
    """Tensors by name, beginning with the part's; alphas by the name of a tensor or module; settings of the training.

    Names are those of diffusers or peft, but kohya's modules may be left in letters and underscores.
    """
    import diffusers
    from safetensors.torch import load_file

    kind, tensors = getattr(diffusers, pipeline), load_file(lora.path)
    if any(name.startswith(_PEFT) for name in tensors):  # peft knows one network, and keeps the settings beside it
        settings = optional_object(lora.path.with_name("adapter_config.json"), lora.setting)
        named = {f"{denoiser}.{name.removeprefix(_PEFT)}": value for name, value in tensors.items()}
        return *_without_kohyas_names(named, denoiser), {
            f"{denoiser}.{name}": value for name, value in settings.items()
        }
    if not hasattr(kind, f"{denoiser}_name"):  # no LoRAs in diffusers, or only another family's
        return *_without_kohyas_names(tensors, denoiser), {}
    try:
        read = kind.lora_state_dict(
            str(lora.path.parent),
            weight_name=lora.path.name,
            local_files_only=True,
            use_safetensors=True,
            unet_config=unet_config,
            return_alphas=True,
            return_lora_metadata=True,
        )
    except ValueError:  # names that it cannot convert, and which may be the model's own
        read = tensors, None
    tensors, alphas, settings = read if len(read) == 3 else (read[0], None, read[1])
    tensors, more = _without_kohyas_names(tensors, denoiser)
    return tensors, {**(alphas or {}), **more}, dict(settings or {})


def _without_kohyas_names(tensors: Mapping[str, Tensor], denoiser: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The tensors, with kohya's in peft's names but for the module's, and the alphas among them by module."""
    named, alphas = {}, {}
    for name, value in tensors.items():
        found = _KOHYA.fullmatch(name)
        if found is None:
            if name.endswith(".alpha") and value.numel() == 1:  # kohya's way with names of diffusers or peft
                alphas[name] = float(value)
            else:
                named[name] = value
            continue
        part = {"te": "text_encoder", "te1": "text_encoder"}.get(found["part"], denoiser)
        if found["part"] in ("te2", "te3"):
            part = f"text_encoder_{found['part'][-1]}"
        module = f"{part}.{found['module']}"
        if found["factor"]:
            named[f"{module}.lora_{'A' if found['factor'] == 'down' else 'B'}.weight"] = value
        else:
            alphas[f"{module}.alpha"] = float(value)
    return named, alphas


def _merge(
    lora: LoraFile,
    part: str,
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    alphas: Mapping[str, float],
    settings: Mapping[str, Any],
) -> list[str]:
    """Adds what ``tensors`` have for a part to its network; returns the names of those that fit nothing in it."""
    prefix, modules = f"{part}.", dict(network.named_modules())
    in_letters = {name.replace(".", "_"): name for name in modules}
    changes: dict[str, _Change] = {}
    lost = []
    for name, value in tensors.items():
        if not name.startswith(prefix):
            continue
        modern = _modern_name(name.removeprefix(prefix), part, flat="text_model" not in modules)
        found = _MODERN.search(modern)
        given = modern[: found.start()] if found else ""
        module = given if given in modules else in_letters.get(given, given)
        if found is None or not hasattr(modules.get(module), "weight"):
            lost.append(name)
            continue
        change = changes.setdefault(module, _Change())
        if found[2] == "weight" and (change.a if found[1] == "A" else change.b) is not None:
            raise InputError(f"{lora.setting}: {prefix}{module}: has two changes, in two layouts; give one of them")
        if found[2] == "bias":
            change.bias = value
        elif found[1] == "A":
            change.a, change.alpha = value, alphas.get(f"{name}.alpha", alphas.get(f"{prefix}{given}.alpha"))
        else:
            change.b = value
    own = {name.removeprefix(prefix): value for name, value in settings.items() if name.startswith(prefix)}
    if own.get("use_dora"):
        raise InputError(f"{lora.setting}: is an adapter of the kind DoRA, which is not read; give a LoRA")
    for module, change in changes.items():
        with named_errors(f"{lora.setting}: adapter_config.json", "read"):
            scale = _scale(module, change, own)
        problem = _add(modules[module], change, lora.weight, *scale)
        if problem is not None:
            raise InputError(f"{lora.setting}: {prefix}{module}: {problem}")
    return lost


def _modern_name(name: str, part: str, *, flat: bool) -> str:
    """A tensor's name in peft's layout: the module, then lora_A.weight, lora_B.weight or lora_B.bias.

    A ``flat`` text encoder has no text_model around its modules.
    """
    from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft
    from diffusers.utils.state_dict_utils import StateDictType

    # One by one: a file may have names of several layouts, and the functions look at its first name only.
    is_text = part.startswith("text_encoder")
    if not _MODERN.search(name):
        one = {name: torch.empty(0)}
        if is_text:
            newer = "lora_linear_layer" in name
            of = StateDictType.DIFFUSERS if newer else StateDictType.DIFFUSERS_OLD
            name = next(iter(convert_state_dict_to_peft(one, original_type=of)))
        else:
            name = next(iter(convert_unet_state_dict_to_peft(one)))
    return re.sub(r"^text_model[._]", "", name) if flat and is_text else name


def _scale(module: str, change: _Change, settings: Mapping[str, Any]) -> tuple[float, bool]:
    """(alpha, whether it is divided by the root of the rank): as the file says for this module, else as trained."""
    alpha = change.alpha
    if alpha is None:
        patterns = settings.get("alpha_pattern") or {}
        matching = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
        alpha = next(matching, settings.get("lora_alpha"))
    rank = 1 if change.a is None else len(change.a)
    return float(rank if alpha is None else alpha), bool(settings.get("use_rslora"))


@torch.no_grad()
def _add(module: Any, change: _Change, weight: float, alpha: float, rooted: bool) -> str | None:
    """W + weight alpha / rank B A, computed in float32; returns what is wrong with the factors, if anything is."""
    if change.a is None or change.b is None:
        return "one of its two factors is missing; give an intact copy"
    own: Tensor = module.weight
    rank = len(change.a)
    # A convolution's A has its kernel, and B is one of 1x1.
    a, b = (factor.flatten(1).float() for factor in (change.a, change.b))
    if rank == 0 or b.shape != (own.shape[0], rank) or a.shape[1] != own[0].numel():
        shapes = " and ".join("x".join(map(str, value.shape)) for value in (change.b, change.a))
        fits = "x".join(map(str, own.shape))
        return f"its factors of {shapes} do not make a change of {fits}; give a LoRA made for this model"
    if not (a.isfinite().all() and b.isfinite().all() and math.isfinite(alpha)):
        return "its factors are not all finite numbers; give an intact copy"
    factor = weight * alpha / (rank**0.5 if rooted else rank)
    added = (b.to(own.device, torch.float32) @ a.to(own.device, torch.float32)).reshape(own.shape)
    own.copy_(own.float() + factor * added)
    if change.bias is not None:
        module.bias.copy_(module.bias.float() + factor * change.bias.to(own.device, torch.float32))
    return None
