"""Compares the tensors in weight files with those that a network needs, by names and shapes, before they are read.

diffusers and transformers leave missing weights at random values with a warning, drop extra ones without, and stop at
the first wrong shape with an error that does not name the setting.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nfsd3d.errors import InputError
from nfsd3d.prior.files.configs_and_headers import shapes_in

Shapes = Mapping[str, list[int]]

# Former names of the attention's projections in diffusers' autoencoders; the library renames them when it loads.
_FORMER_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_FORMER = re.compile(rf"(attentions\.\d+)\.({'|'.join(_FORMER_NAMES)})\.")


def present_name(name: str) -> str:
    """A tensor's name in today's diffusers and transformers."""
    name = _FORMER.sub(lambda match: f"{match[1]}.{_FORMER_NAMES[match[2]]}.", name)
    return name.removeprefix("text_model.")  # transformers 5.6 removed this level of CLIP's text encoder


def check_network(network: torch.nn.Module, files: Sequence[Path], setting: str) -> None:
    """Checks that the weight files beside a configuration hold exactly the tensors of ``network``, possibly on meta.

    Raises:
        InputError: a tensor is missing, extra, or has another shape; the message names the first.
        OSError, ValueError: a file is damaged.
    """
    folder = files[0].parent
    found = {present_name(name): shape for name, shape in shapes_in(files).items()}
    check_shapes(network, found, f"{setting}: {folder}")
    # A text encoder is often saved together with other parts of CLIP.
    extra = sorted(found.keys() - network.state_dict().keys())
    if extra and not hasattr(network, "embeddings"):
        raise InputError(
            f"{setting}: {folder} holds weights that its config.json does not describe (first: {extra[0]}); "
            "restore the configuration that the weights were saved with"
        )


def check_shapes(network: torch.nn.Module, found: Shapes, place: str) -> None:
    """Raises `InputError` if the tensors ``found`` in a file lack one of ``network``, or one has another shape."""
    needed = {present_name(name): list(tensor.shape) for name, tensor in network.state_dict().items()}
    lacking = sorted(needed.keys() - found.keys())
    kind = type(network).__name__
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise InputError(f"{place} lacks weights of {kind} (first: {lacking[0]}{more}); replace it with an intact copy")
    other = next((name for name in needed if list(found[name]) != needed[name]), None)
    if other is not None:
        raise InputError(
            f"{place} has weights of another {kind} than its config.json describes (first: {other} of shape "
            f"{list(found[other])} instead of {needed[other]}); choose weights and configuration of one model"
        )


def check_all_loaded(
    network: torch.nn.Module, missing: Collection[str], unexpected: Collection[str], place: str
) -> None:
    """Checks what transformers says of the weights that it read.

    Raises:
        InputError: some of the network are ``missing``, which it then draws at random; or ``unexpected`` ones are of
            further layers of the network's, which its configuration does not describe.
    """
    if missing:
        first, more = min(missing), f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        kind = type(network).__name__
        raise InputError(f"{place} lacks weights of {kind} (first: {first}{more}); replace it with an intact copy")
    own = {re.sub(r"\d+", "0", name) for name in network.state_dict()}
    further = sorted(name for name in unexpected if re.sub(r"\d+", "0", name) in own)
    if further:
        raise InputError(
            f"{place} holds weights that its config.json does not describe (first: {further[0]}); restore the "
            "configuration that the weights were saved with"
        )


def meta_tensors(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Tensors of these shapes without memory, to convert names before any data is read."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def read_tensors(file: Path, prefix: str = "") -> dict[str, Any]:
    """The tensors in ``file`` whose names begin with ``prefix``, by those names."""
    from safetensors import safe_open

    with safe_open(file, "pt") as stream:
        return {name: stream.get_tensor(name) for name in stream.keys() if name.startswith(prefix)}  # noqa: SIM118
