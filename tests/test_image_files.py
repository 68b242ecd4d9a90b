import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rebus.data.image_files import FORMATS, MAX_PIXELS, fit, read_picture

SIZE = 13


def noise(width=23, height=17, mode="RGB"):
    shape = (height, width, len(mode)) if len(mode) > 1 else (height, width)
    return Image.fromarray(np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8), mode=None)


def encoded(image, file_format):
    data = io.BytesIO()
    image.save(data, file_format)
    return data.getvalue()


@pytest.mark.parametrize("file_format", FORMATS)
def test_every_format_is_read_and_fitted(tmp_path, file_format):
    (path := tmp_path / "picture").write_bytes(encoded(noise(), file_format))
    pixels = read_picture(path, SIZE)
    assert pixels.shape == (SIZE, SIZE, 3) and pixels.dtype == np.uint8 and pixels.std() > 10


def test_the_middle_square_of_the_right_size_is_left_as_it_is(tmp_path):
    wide = noise(SIZE + 8, SIZE)
    wide.save(tmp_path / "wide.png")
    assert (read_picture(tmp_path / "wide.png", SIZE) == np.asarray(wide)[:, 4:-4]).all()


def test_what_is_clear_becomes_white_without_a_fringe():
    image = Image.new("RGBA", (30, 30), (0, 0, 0, 0))
    image.paste((200, 0, 0, 255), (0, 0, 15, 30))
    pixels = fit(image, 10)
    assert (pixels[:, 8:] == 255).all() and (pixels[:, :2] == (200, 0, 0)).all()
    palette = noise().convert("P")
    palette.info["transparency"] = 0
    assert fit(palette, SIZE).shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "CMYK", "I;16", "YCbCr"])
def test_every_mode_becomes_red_green_and_blue(mode):
    gray = Image.fromarray(np.tile(np.linspace(0, 255, 20, dtype=np.uint8), (20, 1)))
    image = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257) if mode == "I;16" else gray.convert(mode)
    pixels = fit(image, 20)
    assert pixels.shape == (20, 20, 3)
    assert np.abs(pixels.astype(int).mean(axis=2).mean(axis=0) - np.asarray(gray)[0]).mean() < 20


def test_a_turned_photograph_is_turned_upright(tmp_path):
    sides = Image.new("RGB", (40, 40), "white")
    sides.paste("black", (0, 0, 20, 40))
    tags = Image.Exif()
    tags[0x0112] = 6  # the camera lay on its side: turn by 90 degrees clockwise
    sides.save(tmp_path / "turned.jpg", exif=tags)
    pixels = read_picture(tmp_path / "turned.jpg", 20)
    assert pixels[:8].mean() < 20 and pixels[-8:].mean() > 235


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "must be a picture, got no such file"),
        (b"", "must be a picture .PNG, JPEG, WEBP, GIF, BMP., got something else"),
        (b"hello there, I am no picture", "got something else"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "got something else"),
        (encoded(noise(), "TIFF"), "got something else"),
    ],
)
def test_no_picture_is_refused(tmp_path, content, message):
    path = tmp_path / "file.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_picture(path, SIZE)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be a picture, got a folder"):
        read_picture(tmp_path, SIZE)


def huge_png(width, height):
    """Returns a header that promises more than there is: nothing of it may be decoded."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [2**13 + 1, 10_000, 50_000])
def test_too_many_pixels_are_refused_by_the_header_alone(tmp_path, side, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    (path := tmp_path / "huge.png").write_bytes(huge_png(side, side))
    with pytest.raises(ValueError, match=f"must have at most {MAX_PIXELS:,} pixels, got"):
        read_picture(path, SIZE)


@pytest.mark.parametrize("file_format", FORMATS)
def test_half_a_picture_is_refused(tmp_path, file_format):
    data = encoded(noise(67, 61), file_format)
    (path := tmp_path / "half").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(ValueError, match="got a damaged or truncated one|got something else or a broken one"):
        read_picture(path, SIZE)


@given(
    file_format=st.sampled_from(FORMATS),
    cut=st.integers(0, 2000),
    place=st.integers(0, 2000),
    byte=st.binary(max_size=3),
)
def test_damaged_files_give_a_picture_or_a_value_error(tmp_path_factory, file_format, cut, place, byte):
    data = encoded(noise(), file_format)
    damaged = data[:place] + byte + data[place + len(byte) : len(data) - cut]
    (path := tmp_path_factory.mktemp("damaged") / "file").write_bytes(damaged)
    try:
        assert read_picture(path, SIZE).shape == (SIZE, SIZE, 3)
    except ValueError as error:
        assert str(path) in str(error)
