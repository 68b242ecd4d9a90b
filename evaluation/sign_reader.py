"""Reads the words in a picture with RapidOCR, an engine that no part of a model was trained with."""

from importlib import import_module

import numpy as np
from jaxtyping import UInt8
from PIL import Image

_ENLARGED = 3
"""The engine was made for larger letters than those of our signs."""
_SHORTEST_SIDE_PX = 384
"""The engine enlarges pictures up to this: its own 736 px read no more of our signs, in three times the time."""


class SignReader:
    """Text lines of a picture."""

    def __init__(self) -> None:
        """Loads the engine.

        Raises:
            ValueError: if RapidOCR is not installed.
        """
        try:
            engine = import_module("rapidocr_onnxruntime")
        except ImportError as error:
            raise ValueError(
                "sign_text must have rapidocr-onnxruntime installed: pip install 'rebus-lm[evaluation]'"
            ) from error
        self._engine = engine.RapidOCR(
            intra_op_num_threads=1, inter_op_num_threads=1, det_limit_side_len=_SHORTEST_SIDE_PX
        )

    def read(self, picture: UInt8[np.ndarray, "height width 3"]) -> list[str]:
        """Returns the lines that stand in the picture, in reading order."""
        height, width = picture.shape[:2]
        large = Image.fromarray(picture).resize((width * _ENLARGED, height * _ENLARGED), Image.Resampling.BICUBIC)
        lines, _ = self._engine(np.asarray(large)[..., ::-1], use_cls=False)  # blue first; signs are never upside down
        return [text for _, text, _ in lines or []]
