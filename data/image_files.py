"""Pictures from files that strangers may have made: checked before they are decoded, then fitted to a model's size."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from rebus.data.bad_data import BadRecord

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""What is read; of a moving picture, its first frame. Other formats have decoders that nobody should feed unasked."""
MAX_PIXELS = 2**26
"""Pixels of the largest picture that is decoded, about 67 million; the file's header tells before anything is."""

MAX_BYTES = 2**28
"""Bytes of the largest file that is read, about 268 million."""

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error)
"""What Pillow's decoders raise at data that breaks off or makes no sense."""


def read_picture(path: Path, size_px: int) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the picture in a file as a square of ``size_px``.

    Raises:
        BadRecord: (a ``ValueError``) if there is no such file, it holds no whole picture of a known format, or one of
            too many bytes or pixels.
    """
    if not path.is_file():
        raise BadRecord("missing", f"{path} must be a picture, got {'a folder' if path.is_dir() else 'no such file'}")
    if path.stat().st_size > MAX_BYTES:
        raise BadRecord("too_large", f"{path} must have at most {MAX_BYTES:,} bytes, got {path.stat().st_size:,}")
    return decode_picture(path.read_bytes(), str(path), size_px)


def decode_picture(data: bytes, name: str, size_px: int) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the picture that the bytes of a file hold as a square of ``size_px``; errors call it by ``name``.

    Raises:
        BadRecord: (a ``ValueError``) if that is no whole picture of a known format, or one of too many bytes or pixels.
    """
    if len(data) > MAX_BYTES:
        raise BadRecord("too_large", f"{name} must have at most {MAX_BYTES:,} bytes, got {len(data):,}")
    with _opened(data, name) as image:
        if image.width * image.height > MAX_PIXELS:
            got = f"{image.width} x {image.height} = {image.width * image.height:,}"
            raise BadRecord("too_large", f"{name} must have at most {MAX_PIXELS:,} pixels, got {got}")
        try:
            image.load()
            return fit(ImageOps.exif_transpose(image), size_px)
        except _BROKEN as error:
            # What Pillow says may hold an address in memory.
            raise BadRecord(
                "broken_picture", f"{name} must be a whole picture, got a damaged or truncated one"
            ) from error


def _opened(data: bytes, name: str) -> Image.Image:
    """Returns a picture of which the header alone was read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadRecord("too_large", f"{name} must have at most {MAX_PIXELS:,} pixels, got more ({error})") from error
    except _BROKEN as error:
        raise BadRecord(
            "broken_picture", f"{name} must be a picture ({', '.join(FORMATS)}), got something else or a broken one"
        ) from error


def fit(image: Image.Image, size_px: int) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the middle square of a picture at another size, in red, green and blue; what is clear becomes white."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    clear = image.has_transparency_data
    square = ImageOps.fit(image.convert("RGBA" if clear else "RGB"), (size_px, size_px), Image.Resampling.LANCZOS)
    if clear:
        square = Image.alpha_composite(Image.new("RGBA", square.size, "white"), square).convert("RGB")
    return np.array(square)
