"""Reads the files that a mesh file refers to: materials and textures in its folder or below."""

import contextlib
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from nfsd3d.errors import InputError
from nfsd3d.export.formats.source.messages import source_error
from nfsd3d.runs.files import first_line

_IMAGES = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF", "DDS")

_NUMBER = r"\s+[-+]?[.\d]+(?:e[-+]?\d+)?(?=\s)"
_OPTIONS = re.compile(rf"(?:-(?:mm\s+\S+\s+\S+|[ost](?:{_NUMBER}){{1,3}}|[a-z]+\s+\S+)\s+)*", re.IGNORECASE)
"""Options before the file name of a texture in an MTL, such as ``-s 1 1 1 -clamp on``."""


@dataclass
class Material:
    """A material of an MTL: its diffuse colour ``base`` [3], sRGB, and the file name of its ``texture``."""

    base: NDArray[np.float64] | None = None
    texture: str | None = None


class SiblingFiles:
    """The materials and textures in the ``folder`` of a mesh file or below."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.abspath(folder))
        self.images: dict[Path, NDArray[np.uint8] | None] = {}
        self.missing: dict[str, str] = {}
        self.broken: dict[str, str] = {}

    def find(self, name: str) -> Path | None:
        """The file of a name that may have backslashes, another case, or the path that it had elsewhere."""
        plain = name.strip().strip('"').replace("\\", "/")
        for candidate in (plain, PurePosixPath(plain).name):
            place = Path(os.path.normpath(self.folder / candidate))
            if place.is_relative_to(self.folder):
                with contextlib.suppress(OSError):  # names that no file system takes
                    if found := self._similar(place):
                        return found
        return None

    def _similar(self, place: Path) -> Path | None:
        """The file ``place`` in the folder, or else one whose name differs in case or repeated spaces."""
        if place.is_file():
            return place
        found = [self.folder]
        for part in place.relative_to(self.folder).parts:
            found = [
                entry
                for folder in found
                if folder.is_dir()
                for entry in sorted(folder.iterdir())
                if _folded(entry.name) == _folded(part)
            ]
        return next((entry for entry in found if entry.is_file()), None)

    def read(self, name: str, kind: str = "texture") -> bytes:
        """The content of a file; ``kind``: what it is, in the note if it is missing.

        Raises:
            FileNotFoundError: it is not there.
        """
        if (place := self.find(name)) is None:
            self.missing[name] = kind
            raise FileNotFoundError(f"{name} is missing")
        return place.read_bytes()

    def materials(self, listed: str) -> dict[str, Material]:
        """The materials by their names in the files that a line of an OBJ lists: one name with spaces, or several."""
        line = listed.partition(" #")[0]
        choices = [[listed], [line], re.split(r"(?<=\.mtl)\s+", line, flags=re.IGNORECASE), line.split()]
        materials: dict[str, Material] = {}
        for name in next((names for names in choices if any(map(self.find, names))), choices[2]):
            with contextlib.suppress(FileNotFoundError):
                materials = {**_parsed_mtl(decoded_text(self.read(name, "material file"))), **materials}
        return materials

    def image(self, name: str) -> NDArray[np.uint8] | None:
        """[H,W,3] the image in a file, the same object each time; None if it is missing or damaged."""
        if (place := self.find(name)) is None:
            self.missing[name] = "texture"
            return None
        if place not in self.images:
            self.images[place] = None
            try:
                self.images[place] = decoded_image(place.read_bytes())
            except Exception as error:  # Pillow's decoders raise nearly every exception on damaged files
                self.broken[name] = first_line(error)
        return self.images[place]

    def report(self, path: Path, notes: list[str]) -> None:
        """Notes the missing files.

        Raises:
            InputError: an image is damaged.
        """
        for name, kind in self.missing.items():
            notes.append(f"names the {kind} {name}, which is not in its folder: the mesh has plain colours instead")
        for name, reason in self.broken.items():
            raise texture_error(path, name, reason)


def _folded(name: str) -> str:
    """A file name in lower case, with single spaces."""
    return " ".join(name.casefold().split())


def _parsed_mtl(text: str) -> dict[str, Material]:
    """The materials in an MTL by their names."""
    materials: dict[str, Material] = {}
    material = Material()
    for line in text.replace("\r", "\n").split("\n"):
        keyword, _, rest = line.replace("\t", " ").strip().partition(" ")
        keyword, rest = keyword.lower(), rest.strip()
        if keyword == "newmtl":
            material = materials[" ".join(rest.split())] = Material()
        elif keyword == "kd":
            with contextlib.suppress(ValueError):  # a spectral curve
                values = [float(word) for word in rest.partition("#")[0].split()]
                material.base = np.array(values) if len(values) == 3 and np.isfinite(values).all() else None
        elif keyword == "map_kd":
            material.texture = _OPTIONS.sub("", rest, count=1) or None
    return materials


def decoded_text(content: bytes) -> str:
    """Text in UTF-8, or else Latin-1."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def texture_error(path: Path, name: str, reason: str) -> InputError:
    """The error of a texture ``name`` of the mesh file ``path`` that cannot be decoded."""
    return source_error(path, f"its texture {name} cannot be read ({reason}); save it as PNG or JPEG")


def decoded_image(content: bytes) -> NDArray[np.uint8]:
    """[H,W,3] uint8: the image in the ``content`` of a file, without its alpha channel.

    Raises:
        ValueError: it is no image; Pillow raises other exceptions where it is damaged.
    """
    from PIL import Image, UnidentifiedImageError

    Image.init()
    try:
        image = Image.open(io.BytesIO(content), formats=[name for name in _IMAGES if name in Image.OPEN])
    except UnidentifiedImageError as error:  # its message is the address of the BytesIO
        raise ValueError("it is no image of a known format") from error
    with image as opened:
        if opened.mode.startswith("I;16"):  # Pillow would clip
            return np.repeat((np.asarray(opened) // 257).astype(np.uint8)[:, :, None], 3, axis=2)
        return np.array(opened.convert("RGB"))
