"""Required files of a model folder in the diffusers layout."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nfsd3d.errors import InputError

NETWORKS = ("unet", "vae", "text_encoder")


@dataclass(frozen=True)
class Contents:
    """Required files of a folder in the diffusers layout.

    ``networks`` are subfolders with a configuration ("" is the folder itself), and with ``weights`` if that is true;
    ``others`` are further files; ``tokenizer`` says whether there must be one. ``description`` is for messages.
    """

    networks: tuple[str, ...]
    description: str
    weights: bool = True
    others: tuple[str, ...] = ()
    tokenizer: bool = False


MODEL = Contents(
    NETWORKS,
    "a model needs unet/, vae/, text_encoder/, tokenizer/ and scheduler/ in the layout of diffusers",
    others=("scheduler/scheduler_config.json",),
    tokenizer=True,
)
"""A whole model."""

LAYOUT = Contents(
    NETWORKS,
    "a single file needs beside it what a model in the layout of diffusers has besides weights",
    weights=False,
    others=("model_index.json", "scheduler/scheduler_config.json"),
    tokenizer=True,
)
"""The configurations and the tokenizer of a single-file model."""

AUTOENCODER = Contents(("",), "an autoencoder needs config.json and diffusion_pytorch_model.safetensors")


def check_folder(folder: Path, setting: str, contents: Contents = MODEL) -> Path:
    """``folder`` itself, if it holds the required files.

    Raises:
        InputError: it does not exist, or a file is missing; the message names the first one.
    """
    if not folder.is_dir():
        raise InputError(f"{setting}: the folder {folder} does not exist")
    missing = first_missing(files_in(folder), contents)
    if missing is not None:
        raise InputError(f"{setting}: {folder} lacks {missing}; {contents.description}")
    return folder


def files_in(folder: Path) -> list[str]:
    """The paths of the files in ``folder`` and in its folders, relative to it."""
    return [
        path.relative_to(folder).as_posix() for glob in ("*", "*/*") for path in folder.glob(glob) if path.is_file()
    ]


def first_missing(files: Iterable[str], contents: Contents) -> str | None:
    """The first requirement of ``contents`` that ``files`` (relative paths) lacks; None if nothing is missing."""
    present = set(files)
    for network in contents.networks:
        if inside(network, "config.json") not in present:
            return inside(network, "config.json")
        if contents.weights and not any(_is_weights(path, network) for path in present):
            return inside(network, "*.safetensors")
    words = {"tokenizer/vocab.json", "tokenizer/merges.txt"} <= present or "tokenizer/tokenizer.json" in present
    if contents.tokenizer and not words:
        return "tokenizer/vocab.json with merges.txt, or tokenizer/tokenizer.json"
    return next((name for name in contents.others if name not in present), None)


def wanted_files(files: list[str], contents: Contents) -> list[str]:
    """The files to download: configurations, the tokenizer, and one set of weights per network."""
    wanted = ["model_index.json", "tokenizer/*", "scheduler/*"] if contents.tokenizer else []
    for network in contents.networks:
        wanted.append(inside(network, "config.json"))
        if contents.weights:
            weights = sorted(path for path in files if _is_weights(path, network))
            # "...model.fp16.safetensors" sorts before "...model.safetensors": half the size, sufficient precision.
            wanted.append(weights[0])
    return wanted


def inside(network: str, name: str) -> str:
    """The relative path of a file of a network; "" is the network in the folder itself."""
    return f"{network}/{name}" if network else name


def _is_weights(path: str, network: str) -> bool:
    stem = "model" if network == "text_encoder" else "diffusion_pytorch_model"
    return path in (inside(network, f"{stem}.safetensors"), inside(network, f"{stem}.fp16.safetensors"))
