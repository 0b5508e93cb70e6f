"""The words that a model with a small vocabulary knows.

The embedded model was trained on a small language, given in ``vocabulary.json`` in its folder:
``{"words": [...], "groups": {"objects": [...], ...}}``. A model without that file takes any text.
"""

import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from nfsd3d.errors import InputError

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
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"prior.model: {path} is no vocabulary ({error}); replace it with an intact copy") from error


def words_of(text: str) -> list[str]:
    """The lower-case runs of letters and the runs of digits in ``text``, in order; punctuation separates.

    As CLIP's tokenizer splits: ``3D`` is the two words ``3`` and ``d``.
    """
    return re.findall(r"[^\W\d_]+|\d+", text.lower())


def check_prompt(folder: Path, prompt: str, setting: str = "prompt") -> None:
    """Accepts a prompt whose every word the model in ``folder`` knows, and any prompt for a model of free text.

    Raises:
        InputError: unknown words, or text without any word; the message names the nearest known words, where the
            vocabulary is and which prior takes free text.
    """
    vocabulary = load_vocabulary(folder)
    if vocabulary is None or not prompt.strip():
        return
    words = words_of(prompt)
    remedy = f"; its words are in {vocabulary.path}, and prior=sd21 takes free text"
    if not words:
        raise InputError(f"{setting}={_shortened(prompt)!r} has no word that the prior knows{remedy}")
    unknown = [word for word in dict.fromkeys(words) if word not in vocabulary.words]
    if not unknown:
        return
    named = ", ".join(_with_near(word, vocabulary.words) for word in unknown[:_MOST_NAMED])
    more = f" and {len(unknown) - _MOST_NAMED} more" if len(unknown) > _MOST_NAMED else ""
    raise InputError(f"{setting}: the prior does not know {named}{more}{remedy}")


_MOST_NAMED = 5


def _with_near(word: str, known: frozenset[str]) -> str:
    near = difflib.get_close_matches(word, sorted(known), n=3, cutoff=0.6)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    return f"{_shortened(word)!r}{hint}"


def _shortened(text: str, limit: int = 40) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
