"""Reads the files that a mesh file refers to: materials and textures in its folder or below."""

import io
import os
import re
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from nfsd3d.errors import InputError
from nfsd3d.export.formats.source.messages import source_error
from nfsd3d.runs.files import first_line

_IMAGES = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF", "DDS")


class SiblingFiles:
    """The materials and textures in the ``folder`` of a mesh file or below; a resolver for trimesh's OBJ loader."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.abspath(folder))
        self.images: dict[str, NDArray[np.uint8] | None] = {}
        self.missing: list[str] = []
        self.broken: dict[str, str] = {}

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: it is not there.
        """
        for candidate in (name, PurePosixPath(name).name):
            place = Path(os.path.normpath(self.folder / candidate))
            if place.is_relative_to(self.folder) and place.is_file():
                return place.read_bytes()
        self.missing.append(name)
        raise FileNotFoundError(f"{name} is missing")

    def image(self, name: str) -> NDArray[np.uint8] | None:
        """[H,W,3] the image in a file, the same object each time; None if it is missing or damaged."""
        name = name.strip().strip('"').replace("\\", "/")
        if name.startswith("-"):  # map_Kd -s 1 1 1 FILE
            name = name.split()[-1]
        if name not in self.images:
            self.images[name] = None
            try:
                self.images[name] = decoded_image(self.read(name))
            except FileNotFoundError:
                pass
            except Exception as error:  # Pillow's decoders raise nearly every exception on damaged files
                self.broken[name] = first_line(error)
        return self.images[name]

    def __getitem__(self, name: str) -> str:
        """A material file for trimesh, which would open all of its textures and ignore what goes wrong."""
        return re.sub(
            r"^[ \t]*map_kd\b", "texture", self.read(name.strip()).decode("utf-8", "replace"), flags=re.M | re.I
        )

    def report(self, path: Path, notes: list[str]) -> None:
        """Notes the missing files.

        Raises:
            InputError: an image is damaged.
        """
        for name in dict.fromkeys(self.missing):
            kind = "material file" if name.lower().endswith(".mtl") else "texture"
            notes.append(f"names the {kind} {name}, which is not in its folder: the mesh has plain colours instead")
        for name, reason in self.broken.items():
            raise texture_error(path, name, reason)


def texture_error(path: Path, name: str, reason: str) -> InputError:
    """The error of a texture ``name`` of the mesh file ``path`` that cannot be decoded."""
    return source_error(path, f"its texture {name} cannot be read ({reason}); save it as PNG or JPEG")


def decoded_image(content: bytes) -> NDArray[np.uint8]:
    """[H,W,3] uint8: the image in the ``content`` of a file, without its alpha channel."""
    from PIL import Image

    Image.init()
    with Image.open(io.BytesIO(content), formats=[name for name in _IMAGES if name in Image.OPEN]) as opened:
        if opened.mode.startswith("I;16"):  # Pillow would clip
            return np.repeat((np.asarray(opened) // 257).astype(np.uint8)[:, :, None], 3, axis=2)
        return np.array(opened.convert("RGB"))
