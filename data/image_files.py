"""Pictures from files that strangers may have made: checked before they are decoded, then fitted to a model's size."""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""What is read; of a moving picture, its first frame. Other formats have decoders that nobody should feed unasked."""
MAX_PIXELS = 2**26
"""Pixels of the largest picture that is decoded, about 67 million; the file's header tells before anything is."""

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error)
"""What Pillow's decoders raise at data that breaks off or makes no sense."""


def read_picture(path: Path, size_px: int) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the picture in a file as a square of ``size_px``.

    Raises:
        ValueError: if there is no such file, it holds no whole picture of a known format, or one of too many pixels.
    """
    if not path.is_file():
        raise ValueError(f"{path} must be a picture, got {'a folder' if path.is_dir() else 'no such file'}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{path} must have at most {MAX_PIXELS:,} pixels, got more ({error})") from error
    except _BROKEN as error:
        raise ValueError(
            f"{path} must be a picture ({', '.join(FORMATS)}), got something else or a broken one"
        ) from error
    with image:
        if image.width * image.height > MAX_PIXELS:
            got = f"{image.width} x {image.height} = {image.width * image.height:,}"
            raise ValueError(f"{path} must have at most {MAX_PIXELS:,} pixels, got {got}")
        try:
            image.load()
            return fit(ImageOps.exif_transpose(image), size_px)
        except _BROKEN as error:
            raise ValueError(f"{path} must be a whole picture, got a damaged or truncated one ({error})") from error


def fit(image: Image.Image, size_px: int) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the middle square of a picture at another size, in red, green and blue; what is clear becomes white."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    clear = image.has_transparency_data
    square = ImageOps.fit(image.convert("RGBA" if clear else "RGB"), (size_px, size_px), Image.Resampling.LANCZOS)
    if clear:
        square = Image.alpha_composite(Image.new("RGBA", square.size, "white"), square).convert("RGB")
    return np.array(square)
