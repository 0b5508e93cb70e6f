"""Checks the folder of a model of one of the families before torch is imported: parts, weights, schedule, prompts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nfsd3d.errors import InputError
from nfsd3d.prior.families.base import Family
from nfsd3d.prior.families.table import FAMILIES
from nfsd3d.prior.files.check_folder import family_of
from nfsd3d.prior.files.configs_and_headers import named_errors, optional_object, read_object, tensor_shapes
from nfsd3d.prior.files.count_tokens import clip_tokenizer
from nfsd3d.prior.files.scheduler_config import TrainingSchedule, read_training
from nfsd3d.prior.files.weight_files import weight_files

_DISTILLED = re.compile(r"turbo|lightning|schnell|sprint|hyper-?sd|\blcm\b|distilled", re.IGNORECASE)


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
            f"{setting}: is a distilled model ({found[0]}): guidance is built into it, and it has no unconditional "
            "prediction, without which no condition direction exists; use the base model it was made from"
        )


def check_family_folder(folder: Path, family: Family, setting: str, image_size: int | None = None) -> TrainingSchedule:
    """The training schedule of the model in ``folder``, if all its parts are there and belong to ``family``.

    ``image_size`` in pixels is that of the images it shall see.

    Raises:
        InputError: a part is missing, damaged, or of another family or scheduler; the message names it.
    """
    found = family_in(folder)
    if found is not family:
        name = optional_object(folder / "model_index.json").get("_class_name")
        other = family_of(folder)
        kind = f"a model of the class {name}" if other is None else other[0]
        kind = kind if found is None else f"a {found.title} model"
        preset = next((key for key, row in FAMILIES.items() if row is found), None)
        remedy = "choose the preset of its family" if preset is None else f"use prior={preset}"
        raise InputError(f"{setting}: is {kind} (model_index.json), not {family.title}; {remedy}")
    check_not_distilled(next((name for name in folder.parts if name.startswith("models--")), folder.name), setting)
    parts = parts_of(folder, setting)
    for name in (family.denoiser, "vae", "scheduler", *family.lengths):
        # A text encoder and its tokenizer may be left out together, as T5 in Stable Diffusion 3.
        if name not in parts and not name.startswith("tokenizer_"):
            raise InputError(f"{setting}: {folder} has no {name} in its model_index.json; download the whole model")
    _check_image_size(folder, family, image_size)
    for name in parts:
        if name in (family.denoiser, "vae") or name.startswith("text_encoder"):
            config = read_object(folder / name / "config.json", setting)
            if config.get("guidance_embeds"):
                check_not_distilled("guidance_embeds is true: distilled", f"{setting}: {name}")
            for path in weight_files(folder / name, setting)[1]:
                tensor_shapes(path, f"{setting}: {path}")
    return read_training(folder)


def _check_image_size(folder: Path, family: Family, image_size: int | None) -> None:
    if image_size is None:
        if "sample_size" not in read_object(folder / family.denoiser / "config.json", "prior.model"):
            raise InputError(family.no_own_size)
        return
    vae = read_object(folder / "vae" / "config.json", "prior.model")
    widths = vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or []
    pixels = family.multiple * 2 ** (len(widths) - 1) if isinstance(widths, list) and widths else 1
    if image_size % pixels:
        raise InputError(
            f"prior.image_size={image_size}: must be a multiple of {pixels} for a {family.title} model; "
            f"set {round(image_size / pixels) * pixels or pixels}"
        )


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
        own = optional_object(folder / name / "tokenizer_config.json", setting).get("model_max_length", length)
        yield PromptCounter(name, count, min(length, int(own)))


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
