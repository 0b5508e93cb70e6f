"""Checks the folder of a model of one of the families before torch is imported: parts, weights, schedule, prompts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nfsd3d.errors import InputError
from nfsd3d.prior.families.base import Family, timesteps
from nfsd3d.prior.families.table import FAMILIES
from nfsd3d.prior.files.check_folder import family_of
from nfsd3d.prior.files.check_numbers import check_multiple, check_not_quantised_config, check_numbers
from nfsd3d.prior.files.configs_and_headers import (
    check_not_quantised,
    named_errors,
    optional_object,
    read_object,
    tensor_shapes,
)
from nfsd3d.prior.files.count_tokens import clip_tokenizer
from nfsd3d.prior.files.scheduler_config import FLOW, TrainingSchedule, read_training
from nfsd3d.prior.files.weight_files import weight_files

_DISTILLED = re.compile(
    r"(?<![a-z])(turbo|lightning|schnell|sprint|hyper-?sd(xl)?|lcm|(?<!de-)(?<!de)(?<!un)distilled)(?![a-z])",
    re.IGNORECASE,
)
"""Words in the names of models whose guidance was distilled into them."""

_LARGEST_IMAGE = 32_768  # pixels


def family_in(folder: Path) -> Family | None:
    """The family that the index of ``folder`` names; None if it is none of `FAMILIES`.

    Raises:
        InputError: the index cannot be read.
    """
    name = optional_object(folder / "model_index.json").get("_class_name")
    return next((family for family in FAMILIES.values() if name in family.pipelines), None)


def parts_of(folder: Path, setting: str) -> dict[str, tuple[str, str]]:
    """(library, class) of each part that the index of ``folder`` names, without those it leaves out."""
    index = read_object(folder / "model_index.json", setting)
    pairs = {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    return {name: (str(library), str(kind)) for name, (library, kind) in pairs.items() if library and kind}


def check_not_distilled(name: str, setting: str) -> None:
    """Raises `InputError` if a model of this name has its guidance distilled into it."""
    found = _DISTILLED.search(name)
    if found is not None:
        raise InputError(
            f"{setting}: is a distilled model by its name or settings ({found[0]}): guidance is built into it, and it "
            "has no unconditional prediction, without which no condition direction exists; use the base model it was "
            "made from, or rename the folder of one that is not distilled"
        )


def check_family_folder(folder: Path, family: Family, setting: str) -> TrainingSchedule:
    """The training schedule of the model in ``folder``, if all its parts are there, fit and belong to ``family``.

    Raises:
        InputError: a part is missing, damaged, or of another family or scheduler; the message names it.
    """
    _check_index(folder, family, setting)
    check_not_distilled(next((name for name in folder.parts if name.startswith("models--")), folder.name), setting)
    parts = parts_of(folder, setting)
    _check_parts(folder, family, parts, setting)
    configs = {}
    for name in parts:
        if name in (family.denoiser, "vae") or name.startswith("text_encoder"):
            configs[name] = read_object(folder / name / "config.json", setting)
            _check_config(name, configs[name], setting)
            for path in weight_files(folder / name, setting)[1]:
                tensor_shapes(path, f"{setting}: {path}")
                check_not_quantised(path, f"{setting}: {path}")
    for name, config in configs.items():
        # Numbers of text encoders are not checked: each library's have meanings of their own.
        check = check_numbers if name in (family.denoiser, "vae") else check_not_quantised_config
        check(name, config)
    _check_channels(configs[family.denoiser], configs["vae"], setting)
    training = read_training(folder)
    if family.clock is not timesteps and training.prediction_type != FLOW:
        raise InputError(
            f"{setting}: a {family.title} model is a rectified flow, and its scheduler is one of diffusion models "
            f"({training.prediction_type}); replace scheduler/ with an intact copy"
        )
    return training


def _check_index(folder: Path, family: Family, setting: str) -> None:
    """Raises `InputError` unless the index in ``folder`` names a pipeline of ``family``."""
    if not (folder / "model_index.json").is_file():
        raise InputError(
            f"{setting}: {folder} lacks model_index.json; give a whole {family.title} model in the layout of diffusers"
        )
    found = family_in(folder)
    if found is family:
        return
    name, other = optional_object(folder / "model_index.json").get("_class_name"), family_of(folder)
    if found is not None:
        preset = next(key for key, row in FAMILIES.items() if row is found)
        kind, remedy = f"a {found.title} model", f"use prior={preset}"
    else:
        kind = f"a model of the pipeline {name}" if other is None else f"{other[0].rstrip(',')} of the pipeline {name}"
        remedy = f"give one of the pipeline {' or '.join(family.pipelines)}"
    raise InputError(
        f"{setting}: is {kind} (model_index.json), not one that this preset loads ({family.title}); {remedy}"
    )


def _check_parts(folder: Path, family: Family, parts: Mapping[str, object], setting: str) -> None:
    """Raises `InputError` if the index leaves out a part that ``family`` needs, or a tokenizer has no files."""
    needed = [family.denoiser, "vae", "scheduler"]
    for name in family.lengths:
        both = (name, name.replace("tokenizer", "text_encoder"))
        if name not in family.optional or any(part in parts for part in both):  # or both are left out
            needed += both
    for name in needed:
        if name not in parts:
            raise InputError(f"{setting}: {folder} has no {name} in its model_index.json; download the whole model")
        if name.startswith("tokenizer") and not any((folder / name).glob("*")):
            raise InputError(
                f"{setting}: {folder} lacks {name}/, which model_index.json names; download the whole model"
            )


def _check_config(name: str, config: Mapping[str, Any], setting: str) -> None:
    """Raises `InputError` for the configuration of a part that is distilled."""
    if config.get("guidance_embeds"):
        check_not_distilled("guidance_embeds is true: distilled", f"{setting}: {name}")
    if config.get("time_cond_proj_dim") is not None:
        check_not_distilled("time_cond_proj_dim is set: distilled", f"{setting}: {name}")


def _check_channels(denoiser: Mapping[str, Any], vae: Mapping[str, Any], setting: str) -> None:
    """Raises `InputError` if a denoiser takes other latents than its autoencoder makes; some take patches of 2x2."""
    taken, made = denoiser.get("in_channels"), vae.get("latent_channels")
    if taken is not None and made is not None and taken not in (made, 4 * made):
        raise InputError(
            f"{setting}: the denoiser takes {taken} channels and the autoencoder has {made}; inpainting and editing "
            "models, and parts of two models, cannot be used"
        )


def check_image_size(folder: Path, family: Family, image_size: int | None) -> None:
    """Checks that the model in ``folder`` can see images of ``image_size`` pixels, or says its own size.

    Raises:
        InputError: it cannot, or does not.
    """
    denoiser = read_object(folder / family.denoiser / "config.json", "prior.model")
    if image_size is None:
        if "sample_size" not in denoiser:
            raise InputError(family.no_own_size)
        return
    vae = read_object(folder / "vae" / "config.json", "prior.model")
    widths = vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or []
    pixels = family.multiple * 2 ** (len(widths) - 1) if isinstance(widths, list) and widths else 1
    with named_errors(f"prior.model: {folder / family.denoiser / 'config.json'}", "read"):
        most = family.largest(denoiser)
    largest = _LARGEST_IMAGE if most is None else most * pixels
    if image_size > largest:
        raise InputError(
            f"prior.image_size={image_size}: at most {largest} for this {family.title} model; set {largest}"
        )
    check_multiple(image_size, pixels, f"a {family.title} model")


@dataclass(frozen=True)
class PromptCounter:
    """Counts the tokens that one text encoder of a family reads, with those of begin and end; at most ``length``."""

    name: str
    count: Callable[[str], int]
    length: int

    def excess(self, text: str) -> int:
        """By how many tokens ``text`` is too long; 0 or less if it is not."""
        return self.count(text) - self.length


def prompt_counters(folder: Path, family: Family, setting: str) -> Iterator[PromptCounter]:
    """A counter for each tokenizer in ``folder`` that can be read without its library, to find long prompts early.

    Raises:
        InputError: one of them cannot be read, or its vocabulary does not fit its text encoder.
    """
    parts = parts_of(folder, setting)
    for name, length in family.lengths.items():
        if name not in parts:
            continue
        with named_errors(f"{setting}: {folder / name}", "read"):
            found = _counting(folder / name)
        if found is None:
            continue
        known, count = found
        encoder = optional_object(folder / name.replace("tokenizer", "text_encoder") / "config.json", setting)
        rows = _vocabulary_size(encoder)
        if rows is not None and not 2 < known <= rows:
            raise InputError(
                f"{setting}: {name} has {known} tokens and its text encoder {rows}; replace {name}/ with an intact copy"
            )
        own = optional_object(folder / name / "tokenizer_config.json", setting).get("model_max_length")
        yield PromptCounter(name, count, min(length, int(own)) if isinstance(own, int | float) else length)


def _counting(folder: Path) -> tuple[int, Callable[[str], int]] | None:
    """(vocabulary, tokens of a text) of a tokenizer; None where only its own library reads it."""
    from tokenizers import Tokenizer

    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer.get_vocab_size(), lambda text: len(tokenizer.encode(text).ids)
    if (folder / "merges.txt").is_file():
        clip = clip_tokenizer(folder)
        return clip.get_vocab_size(), lambda text: len(clip.encode(text).ids) + 2
    if (folder / "spiece.model").is_file():  # T5's, which ends a text with </s>
        from sentencepiece import SentencePieceProcessor

        pieces = SentencePieceProcessor(model_file=str(folder / "spiece.model"))
        return pieces.get_piece_size(), lambda text: len(pieces.encode(text)) + 1
    return None


def _vocabulary_size(config: Mapping[str, Any]) -> int | None:
    text = config.get("text_config", config)
    size = text.get("vocab_size") if isinstance(text, Mapping) else None
    return size if isinstance(size, int) else None
