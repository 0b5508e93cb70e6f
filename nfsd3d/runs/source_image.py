"""Reads the source image of an edit without torch, so that errors come early."""

from pathlib import Path
from typing import TYPE_CHECKING

from nfsd3d.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image


def open_image(path: str) -> "Image":
    """The image in a file, upright, in RGB, over white where it is transparent.

    Raises:
        InputError: no such file, or no image.
    """
    from PIL import Image, ImageOps

    place = Path(path).expanduser()
    if not place.is_file():
        raise InputError(f"source_image={path}: no such file; give an image such as a PNG or a JPEG")
    try:
        with Image.open(place) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"source_image={path}: cannot be read as an image ({reason}); give a PNG or a JPEG") from error
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")
