"""Which weight files a part of a model folder has: one file or several, in full precision or in a variant."""

from pathlib import Path

from nfsd3d.errors import InputError
from nfsd3d.prior.files.configs_and_headers import read_object

VARIANTS = (None, "fp16", "bf16", "non_ema")
"""Variants in the order of preference; None is a file without one in its name."""
_STEMS = ("diffusion_pytorch_model", "model")  # of diffusers and of transformers


def weight_files(folder: Path, setting: str) -> tuple[str | None, list[Path]]:
    """(variant, weight files) of the network in ``folder``.

    Raises:
        InputError: it has none, or not all files that its index names; the message begins with ``setting``.
    """
    for variant in VARIANTS:
        for stem in _STEMS:
            whole = folder / (f"{stem}.safetensors" if variant is None else f"{stem}.{variant}.safetensors")
            if whole.is_file():
                return variant, [whole]
            suffix = "json" if variant is None else f"{variant}.json"
            index = folder / f"{stem}.safetensors.index.{suffix}"
            if index.is_file():
                return variant, _shards(index, setting)
    pickle = next((path.name for path in sorted(folder.glob("*")) if path.suffix in (".bin", ".ckpt", ".pt")), None)
    hint = "" if pickle is None else f" (it has {pickle}, which may run code when it is read; convert it)"
    raise InputError(f"{setting}: {folder} lacks *.safetensors{hint}")


def _shards(index: Path, setting: str) -> list[Path]:
    places = read_object(index, setting).get("weight_map")
    names = sorted(set(places.values())) if isinstance(places, dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise InputError(f"{setting}: {index} names no weight files of its folder; replace it with an intact copy")
    for name in names:
        if not (index.parent / name).is_file():
            raise InputError(f"{setting}: {index.parent} lacks {name}, which {index.name} names; download it again")
    return [index.parent / name for name in names]
