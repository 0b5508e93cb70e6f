"""Compositions (object, colours, pattern), their captions, and the held-out compositions."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import torch

from nfsd3d.settings.prompt_texts import HEIGHTS, SECTORS, VIEW_WORDS
from nfsd3d.shapes.world.degrade import NEGATIVE_WORDS, OTHER_WORDS
from nfsd3d.shapes.world.objects import OBJECTS, RGB

COLORS: dict[str, RGB] = {
    "red": (0.85, 0.10, 0.10),
    "orange": (0.96, 0.50, 0.05),
    "yellow": (0.97, 0.85, 0.12),
    "green": (0.13, 0.62, 0.20),
    "blue": (0.12, 0.28, 0.85),
    "purple": (0.50, 0.16, 0.70),
    "pink": (0.97, 0.55, 0.75),
    "brown": (0.45, 0.26, 0.12),
    "white": (0.95, 0.95, 0.95),
    "black": (0.09, 0.09, 0.10),
}
PATTERNS = ("plain", "striped", "checkered", "dotted")
_NOUNS = {"striped": "stripes", "checkered": "checks", "dotted": "dots"}
VIEWS = ("front", "side", "back", "overhead")

FILLERS = (
    "",
    "a photo of",
    "a DSLR photo of",
    "a 3D render of",
    "a rendering of",
    "an image of",
    "a picture of",
    "a close-up of",
    "a 3D model of",
)
QUALITY = ("detailed", "sharp", "high quality", "high resolution", "realistic", "beautiful", "vivid", "bright")


@dataclass(frozen=True)
class Composition:
    """The content of an image: an object, its main colour, its pattern, and the pattern's second colour.

    ``second`` is empty exactly when the pattern is "plain".
    """

    object: str
    pattern: str
    color: str
    second: str = ""

    def __post_init__(self) -> None:
        if self.object not in OBJECTS or self.pattern not in PATTERNS or self.color not in COLORS:
            raise ValueError(f"no such composition: {self}")
        if (self.pattern == "plain") != (self.second == "") or self.second == self.color:
            raise ValueError(f"a pattern takes a second, different colour and 'plain' takes none: {self}")
        if self.second and self.second not in COLORS:
            raise ValueError(f"no such colour: {self}")

    @property
    def prompt(self) -> str:
        """The canonical prompt, for instance "a red and white dotted mushroom"."""
        if self.pattern == "plain":
            return with_article(f"{self.color} {self.object}")
        return with_article(f"{self.color} and {self.second} {self.pattern} {self.object}")


def with_article(words: str) -> str:
    """``words`` with the article "a" or "an"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def parse_prompt(prompt: str) -> Composition:
    """The composition that a canonical prompt or a caption names.

    Accepted are the captions of :func:`sample_caption`, other leading phrases that name a medium ("a zoomed out DSLR
    photo of"), and the view words, backgrounds and quality words behind the object. Upper and lower case are the same.

    Raises:
        ValueError: any other text, such as one with a second object.
    """
    text = " ".join(prompt.lower().split()).removesuffix(".")
    for phrase in _PHRASES:
        if match := re.fullmatch(f"{_LEADING}{phrase}{_TRAILING}", text):
            found = match.groupdict("")
            noun, pattern = found.get("noun", ""), found.get("pattern", "")
            pattern = pattern or _PATTERN_OF.get(noun, "plain")
            return Composition(found["object"], pattern, found["color"], found.get("second", ""))
    raise ValueError(f"not a prompt of the world of shapes: {prompt!r}")


def _any(words: Iterable[str]) -> str:
    return f"(?:{'|'.join(map(re.escape, words))})"


_PATTERN_OF = {noun: pattern for pattern, noun in _NOUNS.items()}
_COLOR, _SECOND = f"(?P<color>{_any(COLORS)})", f"(?P<second>{_any(COLORS)})"
_OBJECT, _PATTERN, _NOUN = (
    f"(?P<object>{_any(OBJECTS)})",
    f"(?P<pattern>{_any(_NOUNS)})",
    f"(?P<noun>{_any(_PATTERN_OF)})",
)
_PHRASES = (
    f"(?:plain )?{_COLOR} {_OBJECT}",
    f"{_COLOR} and {_SECOND} {_PATTERN} {_OBJECT}",
    f"{_PATTERN} {_COLOR} and {_SECOND} {_OBJECT}",
    f"{_OBJECT} with {_COLOR} and {_SECOND} {_NOUN}",
    f"{_COLOR} {_OBJECT} with {_SECOND} {_NOUN}",
)
"""The orders in which a caption names a composition."""

_MEDIA = ("photo", "photograph", "picture", "image", "render", "rendering", "3d model", "close-up", "shot", "view")
_NO_ADJECTIVES = ("a", "an", "the", "and", "or", "of", "on", "in", "with")
_ADJECTIVES = (*QUALITY, *NEGATIVE_WORDS, *OTHER_WORDS)
_VIEWS = f"{_any((*VIEW_WORDS, *SECTORS))}(?: {_any(HEIGHTS)})?"
_ABOUT_THE_IMAGE = rf"(?:(?:an?|the) )?(?:(?!{_any(_NO_ADJECTIVES)} )[\w-]+,? ){{0,5}}{_any(_MEDIA)} of "
_LEADING = rf"(?:{_ABOUT_THE_IMAGE})?(?:(?:an?|the) )?(?:{_any(_ADJECTIVES)},? )*"
_TRAILING = rf"(?:(?:,| on| with) (?:an? )?(?:[\w-]+ ){{0,2}}background|, (?:{_VIEWS}|{_any(_ADJECTIVES)}))*"


@cache
def held_out() -> tuple[Composition, ...]:
    """The compositions that the embedded prior is never trained on (``held_out.txt``, one prompt a line)."""
    text = files("nfsd3d.shapes").joinpath("held_out.txt").read_text(encoding="utf-8")
    return tuple(parse_prompt(line) for line in text.splitlines() if line and not line.startswith("#"))


def _pick(rng: torch.Generator, options: tuple[str, ...] | list[str]) -> str:
    return options[int(torch.randint(len(options), (1,), generator=rng))]


def _chance(rng: torch.Generator, probability: float) -> bool:
    return bool(torch.rand(1, generator=rng) < probability)


def sample_composition(rng: torch.Generator, object_name: str | None = None) -> Composition:
    """A random composition for training, never one of ``held_out()``."""
    while True:
        pattern = _pick(rng, PATTERNS)
        color = _pick(rng, list(COLORS))
        second = _pick(rng, [c for c in COLORS if c != color]) if pattern != "plain" else ""
        composition = Composition(object_name or _pick(rng, list(OBJECTS)), pattern, color, second)
        if composition not in held_out():
            return composition


def view_name(azimuth_deg: float, elevation_deg: float) -> str:
    """The view word of a camera: overhead above 60 degrees, front within 45 of azimuth 0, back beyond 135."""
    if elevation_deg > 60:
        return "overhead"
    turn = abs((azimuth_deg + 180) % 360 - 180)
    return "front" if turn < 45 else "back" if turn > 135 else "side"


def view_phrases(azimuth_deg: float, elevation_deg: float) -> tuple[str, ...]:
    """The phrases for a camera in captions, with repetitions for likelier ones: view word, sector, and height.

    From the front and 30 degrees up: "front view", "front view slightly from above", "straight front view", "straight
    front view slightly from above". Overhead is "overhead view" alone.
    """
    view = f"{view_name(azimuth_deg, elevation_deg)} view"
    if elevation_deg > 60:
        return (view,)
    sector = SECTORS[round(azimuth_deg / (360 / len(SECTORS))) % len(SECTORS)]
    height = [words for words, start in HEIGHTS.items() if elevation_deg >= start][-1]
    return (view, view, f"{view} {height}", sector, f"{sector} {height}", f"{sector} {height}")


def sample_caption(
    rng: torch.Generator,
    composition: Composition,
    views: tuple[str, ...],
    background: str = "",
    words: tuple[str, ...] = (),
) -> str:
    """A caption with random word order and fillers.

    One of ``views`` (see ``view_phrases``) is mentioned in about two of three captions, ``background`` (for instance "a
    white background") when it is not empty, ``words`` are quality or degradation words: all of them are mentioned.
    """
    noun, pattern = composition.object, composition.pattern
    if pattern == "plain":
        phrase = _pick(rng, [f"{composition.color} {noun}"] * 4 + [f"plain {composition.color} {noun}"])
    else:
        pair = f"{composition.color} and {composition.second}"
        phrase = _pick(
            rng,
            [f"{pair} {pattern} {noun}"] * 4
            + [
                f"{pattern} {pair} {noun}",
                f"{noun} with {pair} {_NOUNS[pattern]}",
                f"{composition.color} {noun} with {composition.second} {_NOUNS[pattern]}",
            ],
        )
    filler = _pick(rng, FILLERS[1:]) if _chance(rng, 0.5) else ""
    single = [word for word in words if " " not in word and "-" not in word]
    leading = ""
    if single and _chance(rng, 0.3):
        leading = _pick(rng, single)
        words = tuple(word for word in words if word != leading)
    text = with_article(f"{leading} {phrase}".strip())
    text = f"{filler} {text}" if filler else text
    if background:
        text += _pick(rng, [f" on {background}", f", {background}", f" with {background}"])
    tail = list(words)
    if _chance(rng, 0.65):
        tail.insert(int(torch.randint(len(tail) + 1, (1,), generator=rng)), _pick(rng, views))
    return ", ".join([text, *tail])
