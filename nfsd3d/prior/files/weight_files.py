"""Which weight files a part of a model folder has: one file or several, in full precision or in a variant."""

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from nfsd3d.errors import InputError
from nfsd3d.prior.files.configs_and_headers import read_object

VARIANTS = (None, "fp16", "bf16", "non_ema")
"""Variants in the order of preference; None is a file without one in its name."""
SMALL_FIRST = ("fp16", "bf16", None, "non_ema")
"""The order of preference for a download: half the size, and sufficient precision."""
_STEMS = ("diffusion_pytorch_model", "model")  # of diffusers and of transformers


def weight_files(folder: Path, setting: str) -> tuple[str | None, list[Path]]:
    """(variant, weight files) of the network in ``folder``.

    Raises:
        InputError: it has none, or not all files that its index names; the message begins with ``setting``.
    """
    incomplete: InputError | None = None
    for variant, whole, index in _forms(VARIANTS):
        if (folder / whole).is_file():
            return variant, [folder / whole]
        if (folder / index).is_file():
            try:
                return variant, _shards(folder / index, setting)
            except InputError as error:  # another variant may be complete
                incomplete = incomplete or error
    if incomplete is not None:
        raise incomplete
    names = [path.name for path in sorted(folder.glob("*"))]
    raise InputError(f"{setting}: {folder} lacks *.safetensors{other_weights(names)}")


def weights_among(names: Collection[str], order: Sequence[str | None] = VARIANTS) -> list[str]:
    """The weight files of a network among the ``names`` of the files in its folder, with their index; or none."""
    for variant, whole, index in _forms(order):
        if whole in names:
            return [whole]
        if index in names:
            return [index, *(name for name in sorted(names) if "-of-" in name and _variant_of(name) == variant)]
    return []


def other_weights(names: Collection[str]) -> str:
    """In parentheses, weights among ``names`` that cannot be loaded as they are, and what makes them loadable."""
    for name in names:
        if "-of-" in name and name.endswith(".safetensors"):
            return f" (it has {name} without an index; download the whole folder again)"
        if name.endswith(".safetensors"):
            usual, of_text_encoder = (f"{stem}.safetensors" for stem in _STEMS)
            return f" (it has {name}; rename it to {usual}, a text encoder's to {of_text_encoder})"
    pickle = next((name for name in names if name.endswith((".bin", ".ckpt", ".pt", ".pth"))), None)
    return "" if pickle is None else f" (it has {pickle}, which may run code when it is read; convert it)"


def _forms(order: Sequence[str | None]) -> Iterator[tuple[str | None, str, str]]:
    """(variant, name of a single file, name of an index of several) in the order of preference."""
    for variant in order:
        inside = "" if variant is None else f".{variant}"
        for stem in _STEMS:
            yield variant, f"{stem}{inside}.safetensors", f"{stem}.safetensors.index{inside}.json"


def _variant_of(name: str) -> str | None:
    """The variant of one of several weight files: model.fp16-00001-of-00002, and before 2025 behind the numbers."""
    return next((variant for variant in VARIANTS if variant and re.search(rf"\.{variant}\b", name)), None)


def _shards(index: Path, setting: str) -> list[Path]:
    content = read_object(index, setting)
    places = content.get("weight_map") if isinstance(content.get("metadata"), dict) else None  # diffusers reads both
    names = sorted(set(places.values())) if isinstance(places, dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise InputError(f"{setting}: {index} names no weight files of its folder; replace it with an intact copy")
    for name in names:
        if not (index.parent / name).is_file():
            raise InputError(f"{setting}: {index.parent} lacks {name}, which {index.name} names; download it again")
    return [index.parent / name for name in names]
