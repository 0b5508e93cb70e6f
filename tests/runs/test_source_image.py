"""Source images: any common format gives the picture one sees, and anything else one line."""

import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from nfsd3d.errors import InputError
from nfsd3d.runs.source_image import open_image

GREY = np.linspace(0, 1, 64).reshape(8, 8)
COLOURS = np.stack([GREY, GREY[::-1], GREY.T], -1)


def save(path, values, **options):
    Image.fromarray(values).save(path, **options)
    return str(path)


def pixels(path):
    return np.asarray(open_image(path)).astype(int)


def test_16_bit_grey_is_scaled_by_its_range(tmp_path):
    sixteen = np.round(GREY * 65535).astype(np.uint16)
    expected = np.round(GREY * 255).astype(int)
    for name in ("grey.png", "grey.tif"):
        found = pixels(save(tmp_path / name, sixteen))
        assert (found[..., 0] == found[..., 2]).all() and abs(found[..., 0] - expected).max() == 0
    (tmp_path / "grey.pgm").write_bytes(b"P5 8 8 65535\n" + sixteen.astype(">u2").tobytes())
    assert abs(pixels(str(tmp_path / "grey.pgm"))[..., 1] - expected).max() == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [((GREY * 2**30).astype(np.int32), "32-bit integers"), (GREY.astype(np.float32), "floats")],
)
def test_numbers_without_a_known_white_are_refused(tmp_path, values, message):
    path = save(tmp_path / "image.tif", values)
    with pytest.raises(InputError, match=rf"source_image=.*image\.tif: holds {message}, and nothing says which is wh"):
        open_image(path)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr"])
def test_every_mode_looks_like_the_same_picture(tmp_path, mode):
    source = Image.fromarray(np.kron([[0, 255], [255, 0]], np.ones((8, 8))).astype(np.uint8))
    name = "image.tif" if mode in ("CMYK", "YCbCr") else "image.png"
    image = (source.convert("RGB") if mode in ("CMYK", "YCbCr") else source).convert(mode)
    image.save(tmp_path / name)
    assert abs(pixels(str(tmp_path / name)) - np.asarray(source)[..., None]).max() <= 2


def test_transparency_is_over_white_also_in_a_palette(tmp_path):
    image = Image.fromarray(np.zeros((4, 4), np.uint8)).convert("P")
    image.save(tmp_path / "palette.png", transparency=0)
    assert (pixels(str(tmp_path / "palette.png")) == 255).all()
    assert (pixels(save(tmp_path / "rgba.png", np.zeros((4, 4, 4), np.uint8))) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.round(COLOURS * 255).astype(np.uint8)[:, :5]
    path = save(tmp_path / "image.png", stored, exif=exif)
    turned = {1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1]}
    turned |= {5: stored.swapaxes(0, 1), 6: np.rot90(stored, -1), 7: np.rot90(stored, 2).swapaxes(0, 1)}
    assert (pixels(path) == (turned | {8: np.rot90(stored)})[orientation]).all()


@pytest.mark.parametrize("name", ["image.gif", "image.tif", "image.webp"])
def test_the_first_of_several_frames_counts(tmp_path, name):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    options = {"lossless": True} if name.endswith("webp") else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    assert (pixels(str(tmp_path / name)) == (255, 0, 0)).all()


def png(width, height):
    """A PNG of that size whose pixels are missing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("size", [(10_000, 10_000), (60_000, 60_000)])
def test_an_image_too_large_for_memory_is_refused_without_being_decoded(tmp_path, size):
    (tmp_path / "bomb.png").write_bytes(png(*size))
    with pytest.raises(InputError, match=r"bomb\.png: has more than 89,478,485 pixels; give a smaller image"):
        open_image(str(tmp_path / "bomb.png"))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"


@pytest.mark.parametrize("content", [b"", b"no image", png(0, 0), png(8, 8), EPS, b"GIF89a", b"P5 8 8"])
def test_what_is_no_image_is_one_line(tmp_path, content):
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"^source_image=.*image\.png: cannot be read as an image \(.*\); give a PNG"):
        open_image(str(path))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP"])
def test_an_image_that_is_cut_off_or_damaged_is_an_image_or_one_line(tmp_path, form):
    path = tmp_path / "image"
    Image.fromarray(np.round(COLOURS * 255).astype(np.uint8)).save(path, format=form)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    damaged = [content[: len(content) * part // 8] for part in range(8)]
    for _ in range(40):
        changed = bytearray(content)
        for at in rng.integers(len(content), size=3):
            changed[at] = rng.integers(256)
        damaged.append(bytes(changed))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in damaged:
            path.write_bytes(data)
            try:
                assert open_image(str(path)).mode == "RGB"
            except InputError as error:
                assert str(error).startswith("source_image=") and "\n" not in str(error)


def test_places_that_are_no_file_are_refused(tmp_path):
    for place in (tmp_path, tmp_path / "none.png", "x" * 300, "~nobody-of-this-name/x.png"):
        with pytest.raises(InputError, match=r"^source_image="):
            open_image(str(place))


def test_reading_an_image_does_not_import_torch(tmp_path):
    path = save(tmp_path / "grey.png", np.round(GREY * 65535).astype(np.uint16))
    code = "import sys; from nfsd3d.runs.source_image import open_image; open_image(sys.argv[1]); sys.exit('torch' in "
    assert subprocess.run([sys.executable, "-c", code + "sys.modules)", path], timeout=60).returncode == 0
