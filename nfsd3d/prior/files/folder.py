"""Files of a model folder in the diffusers layout: which are required, downloaded and loaded."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nfsd3d.errors import InputError
from nfsd3d.prior.files.weight_files import SMALL_FIRST, other_weights, weight_files, weights_among

NETWORKS = ("unet", "vae", "text_encoder")


@dataclass(frozen=True)
class Contents:
    """Required files of a folder in the diffusers layout.

    ``networks`` are subfolders with a configuration ("" is the folder itself), and with ``weights`` if that is true;
    ``others`` are further files; ``tokenizer`` says whether there must be one. For messages: ``description``, and
    ``by_hand``, how a user gives a copy from elsewhere. ``family`` is that of `nfsd3d.prior.families.table.FAMILIES`,
    whose index lists the files itself.
    """

    networks: tuple[str, ...]
    description: str
    by_hand: str
    weights: bool = True
    others: tuple[str, ...] = ()
    tokenizer: bool = False
    family: str | None = None


MODEL = Contents(
    NETWORKS,
    "a model needs unet/, vae/, text_encoder/, tokenizer/ and scheduler/ in the layout of diffusers",
    "Download one of them where there is a network and give its folder as prior.model=FOLDER",
    others=("scheduler/scheduler_config.json",),
    tokenizer=True,
)
"""A whole model."""

FLOW = Contents(
    ("unet",),
    "the embedded flow needs unet/ and scheduler/ beside the embedded model",
    "Install the package again",
    others=("scheduler/scheduler_config.json", "vocabulary.json"),
)
"""The parts of the embedded flow that are its own."""

LAYOUT = Contents(
    NETWORKS,
    "a single file needs beside it what a model in the layout of diffusers has besides weights",
    "A single file needs its configurations and its tokenizer beside it: download them (no weights) where there is a "
    "network and give their folder as prior.layout=FOLDER",
    weights=False,
    others=("model_index.json", "scheduler/scheduler_config.json"),
    tokenizer=True,
)
"""The configurations and the tokenizer of a single-file model."""

AUTOENCODER = Contents(
    ("",),
    "an autoencoder needs config.json and diffusion_pytorch_model.safetensors",
    "Download it where there is a network and give its folder as prior.vae=FOLDER, or leave it out",
)


@dataclass(frozen=True)
class LoraFile:
    """A LoRA at ``path`` (safetensors), whose change of the weights is multiplied by ``weight``."""

    path: Path
    weight: float = 1.0

    @property
    def setting(self) -> str:
        """For messages."""
        return f"prior.lora={self.path}"


@dataclass(frozen=True)
class ModelFiles:
    """A model on this machine: its ``folder``; a single ``file`` with the weights; ``vae``, another autoencoder.

    ``family`` is that of `nfsd3d.prior.families.table.FAMILIES`, if it is one of those. The autoencoder is a folder, or
    a single file, which has the configuration of the model's own. ``loras`` adapt denoiser and text encoders.
    ``base`` is the folder of a model whose parts it shares.
    """

    folder: Path
    file: Path | None = None
    vae: Path | None = None
    family: str | None = None
    loras: tuple[LoraFile, ...] = ()
    base: Path | None = None

    def part(self, name: str) -> Path:
        """The folder of a part, such as unet or tokenizer: that of ``base`` where the model has none of its own."""
        own = self.folder / name
        return own if self.base is None or own.is_dir() else self.base / name

    def config(self, network: str) -> Path:
        """The configuration of one of :data:`NETWORKS`."""
        if network == "vae" and self.vae is not None and not self.vae.is_file():
            return self.vae / "config.json"
        return self.part(network) / "config.json"

    def weights(self) -> list[Path]:
        """The weight files of the model's parts, without repetition."""
        if self.family is not None:
            parts = sorted(path for path in self.folder.iterdir() if path.is_dir() and any(path.glob("*.safetensors")))
            return [path for part in parts for path in weight_files(part, "prior.model")[1]]
        return list(dict.fromkeys(path for network in NETWORKS for path in self.weights_of(network)))

    def weights_of(self, network: str) -> list[Path]:
        """The weight files of one of :data:`NETWORKS`.

        Raises:
            InputError: there are none, or not all.
        """
        if network == "vae" and self.vae is not None:
            return [self.vae] if self.vae.is_file() else weight_files(self.vae, "prior.vae")[1]
        return [self.file] if self.file is not None else weight_files(self.part(network), "prior.model")[1]


def files_in(folder: Path, setting: str) -> list[str]:
    """The paths of the files in ``folder`` and in the folders of a model's parts, relative to it.

    Raises:
        InputError: one of them cannot be read.
    """
    folders = [folder, *(folder / part for part in (*NETWORKS, "tokenizer", "scheduler"))]
    try:
        paths = [path for each in folders if each.is_dir() for path in each.iterdir()]
        return [path.relative_to(folder).as_posix() for path in paths if path.is_file()]
    except OSError as error:
        reason = f"{error.filename} cannot be read ({error.strerror})"
        raise InputError(f"{setting}: {reason}; check the path and its permissions") from error


def first_missing(files: Iterable[str], contents: Contents) -> str | None:
    """The first requirement of ``contents`` that ``files`` (relative paths) lacks; None if nothing is missing.

    Weights in another form are named with it.
    """
    present = set(files)
    for network in contents.networks:
        if _inside(network, "config.json") not in present:
            return _inside(network, "config.json")
        own = _names_in(present, network)
        if contents.weights and not weights_among(own):
            return _inside(network, "*.safetensors") + other_weights(own)
    words = {"tokenizer/vocab.json", "tokenizer/merges.txt"} <= present or "tokenizer/tokenizer.json" in present
    if contents.tokenizer and not words:
        return "tokenizer/vocab.json with merges.txt, or tokenizer/tokenizer.json"
    return next((name for name in contents.others if name not in present), None)


def _names_in(files: Iterable[str], network: str) -> list[str]:
    """The names of the files in a network's folder."""
    paths = map(PurePosixPath, sorted(files))
    return [path.name for path in paths if path.parent == PurePosixPath(network)]


def wanted_files(files: Iterable[str], contents: Contents) -> list[str]:
    """The files to download: configurations, the tokenizer, and one set of weights per network."""
    present = set(files)
    wanted = ["model_index.json", "tokenizer/*", "scheduler/*"] if contents.tokenizer else []
    for network in contents.networks:
        wanted.append(_inside(network, "config.json"))
        if contents.weights:
            wanted += [_inside(network, name) for name in weights_among(_names_in(present, network), SMALL_FIRST)]
    return wanted


def _inside(network: str, name: str) -> str:
    return f"{network}/{name}" if network else name
