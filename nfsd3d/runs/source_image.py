"""Reads the source image of an edit without torch, so that errors come early."""

import warnings
from typing import TYPE_CHECKING

from nfsd3d.errors import InputError
from nfsd3d.runs.files import first_line
from nfsd3d.settings.paths import user_path

if TYPE_CHECKING:
    from PIL.Image import Image

# Without PostScript, which Pillow hands to another program.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF", "ICO")
_SCALED = "save it with 8 or 16 bits per channel"


def open_image(path: str) -> "Image":
    """The image in a file, upright, in RGB, over white where it is transparent.

    Values of 16 bits are scaled to 8. Of several pages or frames it is the first.

    Raises:
        InputError: no such file, no image, one that is too large, or numbers without a known range.
    """
    from PIL import Image, ImageOps

    setting = f"source_image={path}"
    try:
        place = user_path(path)
        if not place.is_file():
            raise InputError(f"{setting}: no such file; give an image such as a PNG or a JPEG")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            Image.init()
            formats = [name for name in _FORMATS if name in Image.OPEN]  # some need optional libraries
            with Image.open(place, formats=formats) as opened:
                image = _with_8_bits(ImageOps.exif_transpose(opened), opened.format, setting).convert("RGBA")
    except InputError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = Image.MAX_IMAGE_PIXELS
        raise InputError(f"{setting}: has more than {limit:,} pixels; give a smaller image") from error
    except Exception as error:  # Pillow's decoders raise nearly every exception on damaged files
        reason = first_line(error)
        raise InputError(f"{setting}: cannot be read as an image ({reason}); give a PNG or a JPEG") from error
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _with_8_bits(image: "Image", format: str | None, setting: str) -> "Image":
    """``image`` with 8 bits per channel; Pillow itself clips larger grey values instead of scaling them.

    Raises:
        InputError: 32-bit integers, or floats: nothing says which value is white.
    """
    from PIL import Image

    if image.mode == "F":
        raise InputError(f"{setting}: holds floats, and nothing says which is white; {_SCALED}")
    if image.mode == "I" and format not in ("PNG", "PPM"):  # Pillow reads their 16 bits so
        raise InputError(f"{setting}: holds 32-bit integers, and nothing says which is white; {_SCALED}")
    if not image.mode.startswith("I"):
        return image
    import numpy as np

    grey = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
