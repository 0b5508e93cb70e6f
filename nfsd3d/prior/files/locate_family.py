"""Locates the model of one of the families on this machine, or its hub ids; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

from nfsd3d.errors import InputError
from nfsd3d.prior.families.table import FAMILIES, PRESETS, Preset
from nfsd3d.prior.files.family_folder import check_family_folder, check_image_size, check_not_distilled
from nfsd3d.prior.files.folder import Contents, LoraFile
from nfsd3d.prior.files.locate import Location, ModelSource, as_file, as_folder, is_offline
from nfsd3d.prior.files.lora_files import locate_loras
from nfsd3d.prior.settings import PriorSettings


def locate_family(settings: PriorSettings) -> ModelSource:
    """The model of ``prior=NAME``, or of ``prior.model``, for a preset of `PRESETS`.

    Raises:
        InputError: a folder that is missing, incomplete or of another family, a setting that the family does not have,
            or a model that is not on this machine while offline.
    """
    preset = PRESETS[settings.name]
    for name in ("vae", "layout"):
        if getattr(settings, name) is not None:
            title = FAMILIES[preset.family].title
            raise InputError(
                f"prior.{name}={getattr(settings, name)}: not for {title} models, which are whole folders; leave it out"
            )
    loras = locate_loras(settings.lora)
    if settings.model is None:
        return _from_hub(f"prior={settings.name}", preset, preset.hub_ids, settings, loras)
    setting = f"prior.model={settings.model}"
    if as_file(setting, settings.model) is not None:
        raise InputError(
            f"{setting}: single files of this family are not read; give a folder in the layout of diffusers, which "
            "Pipeline.from_single_file(FILE).save_pretrained(FOLDER) writes"
        )
    folder = as_folder(setting, settings.model)
    if folder is None:
        check_not_distilled(settings.model, setting)
        return _from_hub(setting, preset, (settings.model,), settings, loras)
    check_family_folder(folder, FAMILIES[preset.family], setting)
    check_image_size(folder, FAMILIES[preset.family], settings.image_size)
    return ModelSource(Location(setting, folder, (), _contents(preset)), loras=loras)


def _contents(preset: Preset) -> Contents:
    title = FAMILIES[preset.family].title
    return Contents(
        (),
        f"a {title} model needs what its model_index.json lists",
        "Download one of them where there is a network and give its folder as prior.model=FOLDER",
        family=preset.family,
    )


def _from_hub(
    setting: str, preset: Preset, hub_ids: tuple[str, ...], settings: PriorSettings, loras: tuple[LoraFile, ...]
) -> ModelSource:
    from huggingface_hub import try_to_load_from_cache

    family, reasons = FAMILIES[preset.family], []
    for hub_id in hub_ids:
        index = try_to_load_from_cache(hub_id, "model_index.json")
        if not isinstance(index, str):
            reasons.append("not in the local cache, and offline")
            continue
        folder = Path(index).parent
        try:
            check_family_folder(folder, family, "in the local cache")
        except InputError as error:
            reasons.append(f"{error}; offline")
            continue  # perhaps incomplete: what is missing is downloaded
        check_image_size(folder, family, settings.image_size)
        return ModelSource(Location(setting, folder, (), _contents(preset)), loras=loras)
    found = Location(setting, None, hub_ids, _contents(preset))
    if is_offline(settings.offline):
        raise InputError(found.not_available(reasons))
    return ModelSource(found, loras=loras)
