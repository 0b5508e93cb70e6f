"""Counts a prompt's tokens as transformers' CLIPTokenizer does, with the tokenizers package alone.

transformers takes seconds to import, and a prompt that is too long should fail before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfsd3d.errors import InputError
from nfsd3d.prior.files.configs_and_headers import json_object, named_errors, optional_object

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The words of CLIP's tokenizer: its special tokens, English contractions, runs of letters, digits, runs of signs.
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_SPECIAL = {"unk_token": "<|endoftext|>", "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
_CLIP = {"vocab_size": 49408, "max_position_embeddings": 77}  # where a text encoder's configuration does not say


@dataclass(frozen=True)
class TokenCounter:
    """A CLIP tokenizer, the ``length`` of the longest prompt in tokens, and the token for what it does not know."""

    tokenizer: Tokenizer
    unknown: int | None
    length: int

    def count(self, text: str) -> int:
        """The number of tokens of ``text``, without those of begin and end."""
        return len(self._ids(without_unknown_punctuation(text, self._is_unknown)))

    def check_length(self, text: str, setting: str) -> None:
        """Raises `InputError` if ``text`` has more tokens than the text encoder reads."""
        count = self.count(text)
        if count > self.length:
            raise InputError(f"{setting}: is {count} tokens long and the prior reads {self.length}: shorten it")

    def _is_unknown(self, character: str) -> bool:
        return self.unknown in self._ids(character)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def without_unknown_punctuation(prompt: str, is_unknown: Callable[[str], bool]) -> str:
    """``prompt`` with a space in place of each sign that the tokenizer does not know (``is_unknown``: sign -> bool).

    The unknown token of CLIP's tokenizers is the end of text, which would hide the rest of the prompt. Tokenizers with
    CLIP's complete byte alphabet have no unknown characters.
    """
    punctuation = {character for character in prompt if not (character.isalnum() or character.isspace())}
    dropped = {character for character in punctuation if is_unknown(character)}
    return "".join(" " if character in dropped else character for character in prompt)


def read_tokens(folder: Path) -> TokenCounter:
    """The tokenizer of the model in ``folder``.

    Raises:
        InputError: its files cannot be read, or its vocabulary does not fit the text encoder.
    """
    place = folder / "tokenizer"
    with named_errors(f"prior.model: {place}"):
        vocabulary, merges, added = _vocabulary(place)
        config = optional_object(place / "tokenizer_config.json")
        special = _special_tokens(config)
        tokenizer = _clip(vocabulary, merges, special)
        text_encoder = _CLIP | optional_object(folder / "text_encoder" / "config.json")
        limits = [config.get("model_max_length"), text_encoder["max_position_embeddings"]]
        length = min(limit for limit in limits if limit is not None)
        if not (isinstance(length, int) and length > 2):
            raise ValueError(f"prompts of {length} tokens, with those of begin and end")
        known = max(tokenizer.get_vocab_size(), *(index + 1 for index in (*vocabulary.values(), *added)), 0)
        check_vocabulary(known, text_encoder["vocab_size"])
    return TokenCounter(tokenizer, tokenizer.token_to_id(special["unk_token"]), length - 2)


def clip_tokenizer(folder: Path) -> Tokenizer:
    """The CLIP tokenizer in ``folder``, which adds no tokens of begin and end.

    Raises:
        OSError, ValueError: its files cannot be read.
    """
    vocabulary, merges, _ = _vocabulary(folder)
    return _clip(vocabulary, merges, _special_tokens(optional_object(folder / "tokenizer_config.json")))


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    return {key: _text(config.get(key), default) for key, default in _SPECIAL.items()}


def check_vocabulary(tokens: int, rows: int) -> None:
    """Raises `InputError` if a tokenizer of this many ``tokens`` does not fit a text encoder of ``rows``."""
    # transformers 5 reads a folder without a vocabulary as a tokenizer of its special tokens, without an error.
    if tokens <= 2 or tokens > rows:
        raise InputError(
            f"prior.model: a tokenizer of {tokens} tokens for a text encoder of {rows}: its vocabulary was not read; "
            "replace tokenizer/ with an intact copy"
        )


def _vocabulary(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]], list[int]]:
    """(tokens, merges, ids of added tokens) from the files in ``folder``."""
    if (folder / "tokenizer.json").is_file():
        content = json_object(folder / "tokenizer.json")
        model = content["model"]
        merges = [_pair(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
        return model["vocab"], merges, [int(token["id"]) for token in content.get("added_tokens") or []]
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    pairs = [_pair(line.split()) for line in lines if line and not line.startswith("#version")]
    return json_object(folder / "vocab.json"), pairs, []


def _pair(parts: list[str]) -> tuple[str, str]:
    first, second = parts
    return first, second


def _clip(vocabulary: dict[str, int], merges: list[tuple[str, str]], special: dict[str, str]) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    tokenizer = Tokenizer(
        BPE(
            vocab=vocabulary,
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
            unk_token=special["unk_token"],
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.add_special_tokens(sorted(set(special.values())))
    return tokenizer


def _text(token: Any, default: str) -> str:
    """The text of a special token, which configurations write as text or as an object."""
    text = token["content"] if isinstance(token, dict) and token.get("__type") == "AddedToken" else token or default
    if not isinstance(text, str):
        raise ValueError(f"special token {text!s:.40}")
    return text
