"""Downloads a located model from the Hugging Face hub to its cache; nothing else uses the network."""

from pathlib import Path

from nfsd3d.errors import InputError
from nfsd3d.prior.families.base import Family
from nfsd3d.prior.families.table import FAMILIES, SUPPORTED
from nfsd3d.prior.files.check_folder import check_family, family_of
from nfsd3d.prior.files.check_single_file import check_single_file
from nfsd3d.prior.files.configs_and_headers import reason
from nfsd3d.prior.files.family_folder import check_family_folder, family_in, parts_of
from nfsd3d.prior.files.folder import AUTOENCODER, Contents, ModelFiles, first_missing, wanted_files
from nfsd3d.prior.files.locate import ALIASES, Location, ModelSource
from nfsd3d.prior.files.weight_files import SMALL_FIRST, weights_among

_TIMEOUT = 10.0  # seconds until a hub that does not answer counts as unreachable


def fetch(source: ModelSource) -> ModelFiles:
    """The local files of a model, downloaded to the hub's cache if missing (half-precision files where offered).

    Raises:
        InputError: none of the ids could be downloaded; the message says why for each, and what works without.
    """
    vae = None if source.vae is None else _fetch(source.vae)
    files = ModelFiles(
        _fetch(source.model), source.file, vae, source.model.contents.family, source.loras, source.model.base
    )
    if source.model.folder is None and source.file is not None:  # could not be checked before
        check_single_file(source.file, files.folder, ALIASES, needs_vae=vae is None)
    return files


def _fetch(location: Location) -> Path:
    if location.folder is not None:
        return location.folder
    reasons = []
    for hub_id in location.hub_ids:
        family = location.contents.family
        try:
            folder = _download(hub_id, location.contents)
        except InputError as error:
            reasons.append(str(error))
        else:
            if family is None:
                check_family(folder, location.setting, location.contents)
            else:
                check_family_folder(folder, FAMILIES[family], location.setting)
            return folder
    raise InputError(location.not_available(reasons))


def _download(hub_id: str, contents: Contents) -> Path:
    """The folder of a downloaded model; the `InputError` of one that cannot be had is a reason in a few words."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError

    try:
        # One request first: it fails at once without a network, and lists the weight files.
        siblings = HfApi().model_info(hub_id, timeout=_TIMEOUT).siblings or []
        files = [sibling.rfilename for sibling in siblings]
        if contents.family is not None:
            return _download_family(hub_id, files, FAMILIES[contents.family])
        if contents is not AUTOENCODER and "model_index.json" in files:
            # The configurations first: they show a model of another family, whose weights are gigabytes.
            configurations = snapshot_download(hub_id, allow_patterns=["model_index.json", "*/config.json"])
            family = family_of(Path(configurations))
            if family is not None:
                raise InputError(f"is {family[0]} ({family[1]}), {SUPPORTED}")
        missing = first_missing(files, contents)
        if missing is not None:
            raise InputError(f"lacks {missing}")
        return Path(snapshot_download(hub_id, allow_patterns=wanted_files(files, contents)))
    except GatedRepoError as error:
        place = f"https://huggingface.co/{hub_id}"
        raise InputError(f"gated: accept its licence at {place}, and log in with: hf auth login") from error
    except RepositoryNotFoundError as error:
        raise InputError("no such repository") from error
    except (OSError, HTTPError) as error:  # the client does not wrap the HTTP library's errors
        raise InputError(f"the hub cannot be reached ({reason(error)})") from error


def _download_family(hub_id: str, files: list[str], family: Family) -> Path:
    """The folder of a model of one of the families: first its index, then what the index names."""
    from huggingface_hub import snapshot_download

    index = Path(snapshot_download(hub_id, allow_patterns=["model_index.json"]))
    if family_in(index) is not family:
        raise InputError(f"is no {family.title} model (model_index.json)")
    wanted = ["model_index.json"]
    for part in parts_of(index, hub_id):
        inside = [name for name in files if name.startswith(f"{part}/") and name.count("/") == 1]
        names = [name.removeprefix(f"{part}/") for name in inside]
        wanted += [f"{part}/{name}" for name in weights_among(names, SMALL_FIRST)]
        # Not the indexes of weight files that are not among them.
        others = (name for name in names if name.endswith((".json", ".txt", ".model", ".jinja")))
        wanted += [f"{part}/{name}" for name in others if ".safetensors.index" not in name and ".bin.index" not in name]
    return Path(snapshot_download(hub_id, allow_patterns=wanted))
