"""Vocabulary of a prior that was trained on few words, and the check of a prompt against it.

The embedded model's is ``vocabulary.json`` in its folder: ``{"words": [...], "groups": {"objects": [...], ...}}``. The
group "other" holds all other words. A model without that file accepts any text.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from nfsd3d.errors import InputError, did_you_mean

FILE_NAME = "vocabulary.json"


@dataclass(frozen=True)
class Vocabulary:
    """The known ``words``, some of them in named ``groups``, and the ``path`` they were read from."""

    words: frozenset[str]
    groups: dict[str, tuple[str, ...]]
    path: Path


def load_vocabulary(folder: Path) -> Vocabulary | None:
    """The vocabulary of the model in ``folder``; None if it takes any text.

    Raises:
        InputError: the file is not what the module describes.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        groups = {name: tuple(words) for name, words in content["groups"].items()}
        return Vocabulary(frozenset(content["words"]), groups, path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"prior.model: {path} is not a valid vocabulary file ({error}); replace it with an intact copy"
        ) from error


def words_of(text: str) -> list[str]:
    """The lower-case runs of letters and the runs of digits in ``text``, in order; punctuation separates.

    As CLIP's tokenizer splits: ``3D`` is the two words ``3`` and ``d``.
    """
    return re.findall(r"[^\W\d_]+|\d+", text.lower())


def check_prompt(folder: Path, prompt: str, setting: str = "prompt") -> None:
    """Checks that all words of a prompt are in the vocabulary of the model in ``folder``, if it has one.

    Raises:
        InputError: unknown words, or text without any word; the message names similar words, the groups of known
            words and a prior that takes free text.
    """
    vocabulary = load_vocabulary(folder)
    if vocabulary is None or not prompt.strip():
        return
    words = words_of(prompt)
    groups = [f"{name} {', '.join(known)}" for name, known in vocabulary.groups.items() if name != "other"]
    known = f"; it knows the {'; the '.join(groups)}" if groups else ""
    remedy = f"{known}; all its words are in {vocabulary.path}, and prior=sd21 takes free text"
    if not words:
        raise InputError(f"{setting}={_shortened(prompt)!r} has no word that the prior knows{remedy}")
    unknown = [word for word in dict.fromkeys(words) if word not in vocabulary.words]
    if not unknown:
        return
    near = sorted(vocabulary.words)
    named = ", ".join(f"{_shortened(word)!r}{did_you_mean(word, near)}" for word in unknown[:_MOST_NAMED])
    more = f" and {len(unknown) - _MOST_NAMED} more" if len(unknown) > _MOST_NAMED else ""
    raise InputError(f"{setting}: the prior does not know {named}{more}{remedy}")


_MOST_NAMED = 5


def _shortened(text: str, limit: int = 40) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
